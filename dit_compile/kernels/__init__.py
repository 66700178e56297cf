"""Operators of the ``ditc::`` kind that have machine code for a CPU, and no decomposition."""
