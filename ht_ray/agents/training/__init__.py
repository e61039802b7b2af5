"""The agents' plain loop: collecting, training, evaluation, checkpoints."""
