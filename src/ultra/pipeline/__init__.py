"""All stages in a run directory, what is shown on the way, and what is reported."""
