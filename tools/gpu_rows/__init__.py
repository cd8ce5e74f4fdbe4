"""The rows of tools/gpu_check.py, what runs them in a lease, and what is carried to the machine."""
