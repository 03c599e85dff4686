"""Consensus, as pure state machines."""
