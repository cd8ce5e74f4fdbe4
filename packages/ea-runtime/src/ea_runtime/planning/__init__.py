"""Memory and time of a generation before anything is loaded, and the way that fits. Imports no torch."""
