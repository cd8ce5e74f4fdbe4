"""The baselines of the benchmarks: plain eager PyTorch, written from the architecture as the reference runs it.

They read the weights of this project's networks and give the same numbers, so that each benchmark also checks its
two sides against each other.
"""
