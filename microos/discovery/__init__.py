"""Who serves what."""
