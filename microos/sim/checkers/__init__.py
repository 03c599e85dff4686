"""What must always hold, one file per subsystem."""
