"""The command ``python -m ht_ray.agents.train``: see `ht_ray.agents.training.train`."""

import sys

from ht_ray.agents.training.train import main

if __name__ == "__main__":
    sys.exit(main())
