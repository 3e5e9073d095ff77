"""The engine: shared-prefix rows, micro-batches, attention over them, log-probabilities."""
