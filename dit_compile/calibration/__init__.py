"""Calibration: what sampling with the user's own loop tells passes, and the Plan that keeps it."""
