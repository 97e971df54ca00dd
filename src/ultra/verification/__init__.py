"""Stage 3: try every advice in the simulator before anything is trained on it."""
