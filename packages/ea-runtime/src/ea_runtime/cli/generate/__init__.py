"""The command `ea generate`."""
