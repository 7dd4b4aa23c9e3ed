"""Several sites: knowing them, pulling from them, reading through to them.

Invariant: nothing here decides who may extend a run (`fwstore.log.terms`) or what a record means (`fwstore.log.fold`).
"""
