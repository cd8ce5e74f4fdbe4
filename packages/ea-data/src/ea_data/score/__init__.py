"""Scorers: numbers about a clip."""
