"""The parts of `examples/cluster.py`."""
