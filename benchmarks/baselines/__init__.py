"""Baselines for the benchmarks: plain eager PyTorch that computes the architecture as the reference does.

They read the weights of this project's networks and give the same numbers, so each benchmark also checks one side
against the other.
"""
