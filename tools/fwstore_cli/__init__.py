"""The command line `fwstore`: every command is a thin face of the public API.

Invariant: a command uses only what `fwstore` exports, and every failure ends in one line that says
what happened and what to do, with the documented exit code.
"""
