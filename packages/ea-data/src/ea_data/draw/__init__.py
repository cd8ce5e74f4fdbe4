"""Drawn clips: coloured shapes that move, with captions and machine-readable truth. No torch, no weights."""
