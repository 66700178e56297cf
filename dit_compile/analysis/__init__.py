"""Analyses of a graph: they read it, never change it, and feed passes and reports."""
