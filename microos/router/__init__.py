"""Who is called: the logical call, and what decides it."""
