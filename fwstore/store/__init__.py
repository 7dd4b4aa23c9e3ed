"""Stores: the only code of fwstore that touches a disk or a network.

Invariant: everything above sees `base.Store` and nothing of what is below it; errors of systems and
libraries are translated here.
"""
