"""From data files to token ids, and the order of samples. No torch."""
