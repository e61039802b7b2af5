"""Weights: named copies, fresh draws, buffers, BatchNorm statistics, the optimiser's state."""
