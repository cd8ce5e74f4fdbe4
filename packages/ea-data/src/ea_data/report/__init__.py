"""Report of a set: why each clip was kept or dropped, as one HTML page and as summary.json."""
