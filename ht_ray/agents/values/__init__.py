"""Value heads and losses: scalar, two-hot, HL-Gauss, C51."""

from ht_ray.agents.values.c51 import C51Value
from ht_ray.agents.values.categorical import CategoricalValue, HLGaussValue, TwoHotValue
from ht_ray.agents.values.config import ValueConfig, make_value
from ht_ray.agents.values.losses import bootstrap_targets, td_loss
from ht_ray.agents.values.scalar import ScalarValue
from ht_ray.agents.values.value import Value

__all__ = [
    "C51Value",
    "CategoricalValue",
    "HLGaussValue",
    "ScalarValue",
    "TwoHotValue",
    "Value",
    "ValueConfig",
    "bootstrap_targets",
    "make_value",
    "td_loss",
]
