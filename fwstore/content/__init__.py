"""Packs, manifests and verified reads: everything between a plan and the bytes of a store.

Invariant: what is written becomes visible in the order packs, leaves and pack tables, root; what is read was
compared with its digest before anybody sees it.
"""
