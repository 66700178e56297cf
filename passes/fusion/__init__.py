"""Exact layer fusion."""
