"""Retention and garbage collection: what a site gives up, and how it is made sure that nothing needs it.

Invariant: a key is deleted only after a record that counts condemned it.
"""
