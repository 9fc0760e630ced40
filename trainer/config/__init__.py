"""The choices of a run: options, flags, settings and their checks. No torch."""
