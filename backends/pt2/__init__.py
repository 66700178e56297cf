"""Graphs of a Program as torch's own files: exported programs, and packages of machine code."""
