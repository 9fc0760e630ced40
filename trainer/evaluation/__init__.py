"""Loss, answers and scores on the evaluation set. Loads torch; only worker processes import it."""
