"""What turns the bytes of chunks into names and into fewer bytes; pure, no I/O."""
