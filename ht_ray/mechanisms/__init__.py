"""What is done to weights, in place on tensors, for any ``nn.Module``; torch is all it needs.

A mechanism decides *what* is done. *When* is decided by its caller: the plain loop, an Avalanche plugin, an RLlib
mixin. Whatever acts at steps and epochs is a `Mechanism`, with one method for each moment. At one event the order is
fixed: the tortoise's reset that is due, then Shrink & Perturb, Head Reset, plasticity injection, continual backprop,
ReDo, each on the hare and on the tortoise alike.
"""

from ht_ray._checks import SettingError, SettingWarning
from ht_ray.mechanisms.batchnorm import recalibrate_batchnorm
from ht_ray.mechanisms.continual_backprop import ContinualBackprop
from ht_ray.mechanisms.crelu import CReLU
from ht_ray.mechanisms.distillation import SelfDistillation
from ht_ray.mechanisms.fresh import HEAD_NAMES, find_head, fresh_weights
from ht_ray.mechanisms.head_reset import HeadReset
from ht_ray.mechanisms.mechanism import Inputs, Mechanism
from ht_ray.mechanisms.optimizer import clear_optimizer_state, load_optimizer_state
from ht_ray.mechanisms.optimizer_reset import OptimizerReset
from ht_ray.mechanisms.penalties import L2, Regenerative, SpectralDecoupling
from ht_ray.mechanisms.plasticity_injection import InjectedHead, PlasticityInjection
from ht_ray.mechanisms.redo import ReDo
from ht_ray.mechanisms.rng import derive_seed, generator, isolated_rng
from ht_ray.mechanisms.shrink_perturb import ShrinkPerturb
from ht_ray.mechanisms.tortoise import Tortoise, half_life, momentum_of_half_life
from ht_ray.mechanisms.units import HiddenUnits, UnitMap, find_units
from ht_ray.mechanisms.upgd import UPGD
from ht_ray.mechanisms.weight_clipping import WeightClipping
from ht_ray.mechanisms.weight_copy import WeightCopy, named_tensors

__all__ = [
    "HEAD_NAMES",
    "L2",
    "UPGD",
    "CReLU",
    "ContinualBackprop",
    "HeadReset",
    "HiddenUnits",
    "InjectedHead",
    "Inputs",
    "Mechanism",
    "OptimizerReset",
    "PlasticityInjection",
    "ReDo",
    "Regenerative",
    "SelfDistillation",
    "SettingError",
    "SettingWarning",
    "ShrinkPerturb",
    "SpectralDecoupling",
    "Tortoise",
    "UnitMap",
    "WeightClipping",
    "WeightCopy",
    "clear_optimizer_state",
    "derive_seed",
    "find_head",
    "find_units",
    "fresh_weights",
    "generator",
    "half_life",
    "isolated_rng",
    "load_optimizer_state",
    "momentum_of_half_life",
    "named_tensors",
    "recalibrate_batchnorm",
]
