"""Passes, the Rewriter that they edit with, and the Pipeline that runs them."""
