"""The recipe `vae` and what it is made of."""
