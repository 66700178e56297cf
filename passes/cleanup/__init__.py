"""Passes that only make a graph smaller."""
