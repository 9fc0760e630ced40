"""Find the micro-batch that holds a memory target."""
