"""Worker processes: how they start, send messages and end. No torch."""
