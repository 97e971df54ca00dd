"""The search for rules: ideas, the race between them, and the climb."""
