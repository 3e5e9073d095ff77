"""Loading the 4-bit base and attaching the adapter."""
