"""Workers: the trainable, checkpoints, faults, draining a node."""

#: The environment variable that names a folder, for a file of each worker that waits for a trial.
WAITING_WORKERS = "HT_RAY_WAITING_WORKERS"
