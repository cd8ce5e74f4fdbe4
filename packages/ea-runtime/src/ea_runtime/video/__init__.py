"""Video and picture files, written and read."""
