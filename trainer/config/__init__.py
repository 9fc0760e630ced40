"""What a run is told: options, flags, settings, and what cannot be meant. No torch."""
