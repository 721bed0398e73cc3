"""Several scores of the same candidates as one: normalised, weighed as fitted on held-out events."""
