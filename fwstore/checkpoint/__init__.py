"""Saving, committing and loading the states of runs.

Invariant: see docs/spec/checkpoint.md, C1 to C8.
"""
