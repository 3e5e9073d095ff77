"""The losses, the trainer, checkpoints and guards."""
