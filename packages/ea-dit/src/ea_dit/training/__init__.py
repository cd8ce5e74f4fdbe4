"""The recipe `dit` and what it is made of."""
