"""``ditc bench``: measured comparisons on full-size models with random weights."""
