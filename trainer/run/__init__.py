"""One training run inside a worker. Loads torch; only worker processes import it."""
