"""Loss, answers and scores on the evaluation set. Needs torch; only workers import it."""
