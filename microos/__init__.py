"""microos: a microservice operating system, embedded and peer to peer."""
