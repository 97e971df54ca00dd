"""Branches in the simulator, their pairs, and the step budget."""
