"""Calibration: finds a model's profile from the model itself. docs/calibration.md has the rules and their reasons."""
