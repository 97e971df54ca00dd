"""How good a policy is in the task's own environment, and which of several is best."""
