"""ditc: a compiler for diffusion transformers.

Importing this package imports nothing else: torch is loaded when something first needs it.
"""
