"""The runtime of one node: its cores, driven."""
