"""Sockets and links, real and in memory."""
