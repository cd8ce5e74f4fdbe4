"""The training loop. Recipes (networks, data, loss) come from the packages."""
