"""The one training loop. Recipes (what is trained, on what, with which loss) come from the packages."""
