"""Held-out rewards, text quality, and talking to the result."""
