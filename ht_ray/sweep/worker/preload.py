"""Module that the workers of a Ray of a study's own import before they are asked for a trial."""

import ht_ray.sweep.worker.trainable  # noqa: F401
from ht_ray._postponed import postpone, postpone_dynamo

postpone_dynamo()
# Avalanche imports it for one of its methods; it tries all solvers, JAX among them.
postpone("qpsolvers")
