"""Stage 4: what modulates training, one file per method."""
