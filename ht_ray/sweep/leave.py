"""Command ``python -m ht_ray.sweep.leave``: see `ht_ray.sweep.worker.drain_node`."""

import sys

from ht_ray.sweep.worker.drain_node import main

if __name__ == "__main__":
    sys.exit(main())
