"""Bundles: a Program as a folder of files. Reading and running one needs no torch."""
