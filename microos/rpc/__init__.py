"""Calls on one link."""
