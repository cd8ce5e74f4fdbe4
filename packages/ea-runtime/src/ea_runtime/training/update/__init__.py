"""The optimiser's step: precision, averages, shared work."""
