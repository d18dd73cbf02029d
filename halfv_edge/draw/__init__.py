"""Drawings: plots, and which tokens of a picture were kept."""
