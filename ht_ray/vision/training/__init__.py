"""The plain loop: training, evaluation, optimiser, indicators."""
