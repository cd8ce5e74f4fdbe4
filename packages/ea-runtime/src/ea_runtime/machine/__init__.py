"""The machine that this runs on: devices, number formats, memory, processes."""
