"""Tensors of other models and programs, by name."""
