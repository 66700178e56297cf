"""Measures of how far one set of images, or of features, is from another."""
