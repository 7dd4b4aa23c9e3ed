"""`python -m fwstore_cli` is `fwstore`."""

from fwstore_cli.main import main

main()
