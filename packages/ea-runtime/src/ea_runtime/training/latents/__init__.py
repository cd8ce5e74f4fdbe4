"""The training set as latents and text features, kept on disk."""
