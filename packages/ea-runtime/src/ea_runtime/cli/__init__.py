"""The program `ea`, one file a command."""
