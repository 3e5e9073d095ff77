"""From rows of any known shape to token ids of preference pairs."""
