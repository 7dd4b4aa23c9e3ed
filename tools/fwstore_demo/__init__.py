"""The main job in two minutes: train, kill in the middle of a save, resume elsewhere, compare, free."""
