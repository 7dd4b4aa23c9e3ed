"""A real training run that is killed and resumed: `python -m fwstore_demo`."""
