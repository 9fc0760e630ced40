"""What a run leaves in its folder: logs, cards, plots. No torch."""
