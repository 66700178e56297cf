"""Caching across steps: one insertion mechanism, one small policy a method."""
