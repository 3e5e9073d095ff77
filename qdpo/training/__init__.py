"""The recipe that trains, its losses, checkpoints and guards."""
