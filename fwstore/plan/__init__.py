"""Pure decisions: who writes what, which ranges to fetch, what may be deleted.

Invariant: a plan is a value computed from values alone; nothing here reads, waits or remembers.
"""
