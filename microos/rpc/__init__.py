"""Calls between two processes, as a pure state machine."""
