"""Membership, as a pure state machine."""
