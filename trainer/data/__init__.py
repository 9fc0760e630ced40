"""From the files that people have to token ids, and the order of samples. No torch."""
