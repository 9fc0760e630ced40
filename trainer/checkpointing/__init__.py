"""Checkpoints and the exported model. Loads torch; only worker processes import it."""
