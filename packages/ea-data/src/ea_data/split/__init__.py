"""Splitters: raw video to spans."""
