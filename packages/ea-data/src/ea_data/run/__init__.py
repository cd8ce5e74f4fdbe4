"""Running the pipeline: what is left to do, who does it, and what comes of it."""
