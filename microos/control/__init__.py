"""How a command line speaks to a node."""
