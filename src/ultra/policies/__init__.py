"""Policies: networks, normalisation, files of ours and of Stable-Baselines3."""
