"""A run directory: its files, its lock, its record, and the model that was trained in it."""
