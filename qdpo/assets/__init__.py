"""The embedded base model and preference pairs of the quickstart."""
