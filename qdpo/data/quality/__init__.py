"""What is odd about pairs: counted, remarked on, and mended where that is wanted."""
