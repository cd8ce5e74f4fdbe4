"""Looking at a set: why each clip stayed or fell, as one HTML page and as summary.json."""
