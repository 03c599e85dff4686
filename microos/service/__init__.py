"""What users declare at import and a node serves while it is open."""
