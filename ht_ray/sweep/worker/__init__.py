"""Workers: the trainable, checkpoints, faults, draining a node."""
