"""Who owns which part of the store's keys, as pure state machines."""
