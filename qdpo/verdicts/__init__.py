"""What a run's numbers say: the evidence, and the rules that judge it."""
