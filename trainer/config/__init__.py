"""What a run is told: options, flags, settings and their checks. No torch."""
