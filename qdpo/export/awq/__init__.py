"""4-bit weights by AWQ (https://arxiv.org/abs/2306.00978): calibrated, packed, and read back."""
