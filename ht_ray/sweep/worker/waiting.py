"""Module that a worker imports last, before it waits for a trial: it tells the driver so, with a file in a folder."""

import contextlib
import os
from pathlib import Path

from ht_ray.sweep.worker import WAITING_WORKERS

if WAITING_WORKERS in os.environ:
    with contextlib.suppress(OSError):  # nobody looks any more
        Path(os.environ[WAITING_WORKERS], str(os.getpid())).touch()
