"""The host of the plugins: found, loaded, asked."""
