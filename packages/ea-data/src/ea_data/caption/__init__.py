"""Captioners: words for a clip."""
