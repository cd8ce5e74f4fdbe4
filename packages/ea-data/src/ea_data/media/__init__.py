"""Video files: probed, read, cut."""
