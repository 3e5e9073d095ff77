"""The stages of a training run, in the order in which they happen; each leaves its files in the run directory."""
