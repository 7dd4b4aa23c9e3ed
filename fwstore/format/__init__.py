"""What lies on the store: parse and serialise every object, make every key; no I/O."""
