"""How an operator is computed best on the target."""
