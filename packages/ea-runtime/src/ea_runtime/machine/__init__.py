"""The machine that this runs on: devices, memory, processes."""
