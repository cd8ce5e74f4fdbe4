"""Samples in their order, read ahead."""
