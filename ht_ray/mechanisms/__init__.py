"""What is done to weights, in place on tensors, for any ``nn.Module``; torch is all it needs.

A mechanism decides *what* is done. *When* is decided by its caller: the plain loop, an Avalanche plugin, an RLlib
mixin. At one event the order is fixed: the tortoise's reset that is due, then Shrink & Perturb, then Head Reset, each
on the hare and on the tortoise alike.
"""

from ht_ray._checks import SettingError, SettingWarning
from ht_ray.mechanisms.batchnorm import recalibrate_batchnorm
from ht_ray.mechanisms.fresh import HEAD_NAMES, find_head, fresh_weights
from ht_ray.mechanisms.head_reset import HeadReset
from ht_ray.mechanisms.optimizer import clear_optimizer_state
from ht_ray.mechanisms.rng import derive_seed, generator, isolated_rng
from ht_ray.mechanisms.shrink_perturb import ShrinkPerturb
from ht_ray.mechanisms.tortoise import Tortoise, half_life, momentum_of_half_life
from ht_ray.mechanisms.weight_copy import WeightCopy, named_tensors

__all__ = [
    "HEAD_NAMES",
    "HeadReset",
    "SettingError",
    "SettingWarning",
    "ShrinkPerturb",
    "Tortoise",
    "WeightCopy",
    "clear_optimizer_state",
    "derive_seed",
    "find_head",
    "fresh_weights",
    "generator",
    "half_life",
    "isolated_rng",
    "momentum_of_half_life",
    "named_tensors",
    "recalibrate_batchnorm",
]
