"""Stage 1: episodes, and what can be read off them."""
