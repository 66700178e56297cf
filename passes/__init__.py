"""Rewrite passes, one family a folder and one pass a file; ``catalog.py`` lists all of them.

The list is not imported here: a loaded bundle needs the caching policies, and has no torch.
"""
