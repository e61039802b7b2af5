"""Methods against loss of plasticity, one file each, the moments at which they act, and their registry."""

from ht_ray.mechanisms import SettingError, SettingWarning
from ht_ray.methods.continual_backprop import ContinualBackprop
from ht_ray.methods.head_reset import HeadReset
from ht_ray.methods.method import Inputs, Mechanism
from ht_ray.methods.optimizer_reset import OptimizerReset
from ht_ray.methods.penalties import L2, Regenerative, SpectralDecoupling
from ht_ray.methods.plasticity_injection import InjectedHead, PlasticityInjection
from ht_ray.methods.redo import ReDo
from ht_ray.methods.self_distillation import SelfDistillation
from ht_ray.methods.shrink_perturb import ShrinkPerturb
from ht_ray.methods.tortoise import Tortoise, half_life, momentum_of_half_life
from ht_ray.methods.upgd import UPGD
from ht_ray.methods.weight_clipping import WeightClipping

__all__ = [
    "L2",
    "UPGD",
    "ContinualBackprop",
    "HeadReset",
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
    "WeightClipping",
    "half_life",
    "momentum_of_half_life",
]
