"""Checkpoints of other systems, read and written: safetensors, torch.save files, DCP directories.

Invariant: a foreign file is hostile until proven otherwise. Nothing in it is executed, every length
and offset is checked before it is used, and memory stays bounded whatever the file declares.
"""
