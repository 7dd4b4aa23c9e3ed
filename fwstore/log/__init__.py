"""What happened to a lineage at a site: records, terms, history, pins.

Invariant: a snapshot exists because a record that counts says so, and for no other reason.
"""
