"""Checkpoints and the exported model. Needs torch; only workers import it."""
