"""Advice and rules: records, the language of guards, and rules in a network."""
