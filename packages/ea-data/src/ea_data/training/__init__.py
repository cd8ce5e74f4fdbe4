"""Training sets: reading, buckets, a doctor, and the recipe `text`."""
