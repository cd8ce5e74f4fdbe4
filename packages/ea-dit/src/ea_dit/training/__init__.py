"""The recipe `dit` and its parts."""
