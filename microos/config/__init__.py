"""What the cluster agrees on, live."""
