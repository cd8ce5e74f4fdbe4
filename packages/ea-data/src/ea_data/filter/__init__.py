"""Filters: verdicts over a clip's scores."""
