"""The machine that a run is on: its processor, its number formats, its cache of findings."""
