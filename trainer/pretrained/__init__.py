"""Models as their makers saved them: where they are, how they are read and written again. Loads torch."""
