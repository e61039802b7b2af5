"""Tensor operations that methods are made of, in place, for any ``nn.Module``; torch is all they need.

``weights`` copies, draws and averages; ``units`` finds hidden units and recycles them. When something is done is
decided by the methods of `ht_ray.methods`.
"""

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.units.crelu import CReLU, Fourier
from ht_ray.mechanisms.units.find_units import HiddenUnits, UnitMap, find_units
from ht_ray.mechanisms.weights.batchnorm import recalibrate_batchnorm
from ht_ray.mechanisms.weights.fresh import HEAD_NAMES, find_head, fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import clear_optimizer_state, load_optimizer_state
from ht_ray.mechanisms.weights.power_averages import PowerAverages, posthoc_coefficients, power_exponent
from ht_ray.mechanisms.weights.rng import derive_seed, generator, isolated_rng
from ht_ray.mechanisms.weights.weight_copy import WeightCopy, named_tensors

__all__ = [
    "HEAD_NAMES",
    "CReLU",
    "Fourier",
    "HiddenUnits",
    "PowerAverages",
    "SettingError",
    "SettingWarning",
    "UnitMap",
    "WeightCopy",
    "clear_optimizer_state",
    "derive_seed",
    "find_head",
    "find_units",
    "fresh_weights",
    "generator",
    "isolated_rng",
    "load_optimizer_state",
    "named_tensors",
    "posthoc_coefficients",
    "power_exponent",
    "recalibrate_batchnorm",
]
