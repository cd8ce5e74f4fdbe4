"""A run from its first step to its last: loop, guard, checkpoints, log."""
