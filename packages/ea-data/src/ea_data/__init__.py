"""ea-data: data sets for text-to-video training. Importing this package imports nothing heavy."""
