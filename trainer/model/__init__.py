"""The model and one optimizer step of it. Loads torch; only worker processes import it."""
