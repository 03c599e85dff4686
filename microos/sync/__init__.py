"""Locks with leases and fencing tokens."""
