"""The recipe `vae` and its parts."""
