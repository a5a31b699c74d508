"""Training: the plan of a step, the step, the loop, and what a run leaves on disk."""
