"""Methods against loss of plasticity, one file each, the moments at which they act, and their registry.

A training loop holds a `Composition` and calls it at each moment; a `MethodConfig` says which methods it is made of. A
method of one's own is a class derived from `Method`, with `register` before it, in any module.
"""

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods.adam import Adam
from ht_ray.methods.aid import AID
from ht_ray.methods.architectures import CReLUNetwork, DeepFourier, LayerNormNetwork
from ht_ray.methods.augment import Augment
from ht_ray.methods.config import MethodConfig, parse_method, setting_names
from ht_ray.methods.continual_backprop import ContinualBackprop
from ht_ray.methods.dash import DASH
from ht_ray.methods.fire import FIRE
from ht_ray.methods.head_reset import HeadReset
from ht_ray.methods.l2 import L2
from ht_ray.methods.method import Composition, Inputs, Method, Phase
from ht_ray.methods.muon import Muon, MuonAdamW
from ht_ray.methods.normalize_and_project import NormalizeAndProject
from ht_ray.methods.optimizer_reset import OptimizerReset
from ht_ray.methods.parseval import Parseval
from ht_ray.methods.plain import Plain
from ht_ray.methods.plasticity_injection import InjectedHead, PlasticityInjection
from ht_ray.methods.posthoc_ema import PosthocEMA
from ht_ray.methods.redo import ReDo
from ht_ray.methods.regenerative import Regenerative
from ht_ray.methods.registry import METHODS, display_name, find_method, flat_names, method_parts, register
from ht_ray.methods.regrama import ReGraMa
from ht_ray.methods.self_distillation import SelfDistillation
from ht_ray.methods.settings import MethodSettings, setting
from ht_ray.methods.shrink_perturb import ShrinkPerturb
from ht_ray.methods.snr import SelfNormalizedResets
from ht_ray.methods.spectral_decoupling import SpectralDecoupling
from ht_ray.methods.spectral_regularization import SpectralRegularization
from ht_ray.methods.tortoise import EMA, HareTortoise, Tortoise, half_life, momentum_of_half_life
from ht_ray.methods.trac import TRAC
from ht_ray.methods.upgd import UPGD
from ht_ray.methods.wasserstein import Wasserstein
from ht_ray.methods.weight_clipping import WeightClipping
from ht_ray.methods.weight_consolidation import WeightConsolidation

__all__ = [
    "AID",
    "DASH",
    "EMA",
    "FIRE",
    "L2",
    "METHODS",
    "TRAC",
    "UPGD",
    "Adam",
    "Augment",
    "CReLUNetwork",
    "Composition",
    "ContinualBackprop",
    "DeepFourier",
    "HareTortoise",
    "HeadReset",
    "InjectedHead",
    "Inputs",
    "LayerNormNetwork",
    "Method",
    "MethodConfig",
    "MethodSettings",
    "Muon",
    "MuonAdamW",
    "NormalizeAndProject",
    "OptimizerReset",
    "Parseval",
    "Phase",
    "Plain",
    "PlasticityInjection",
    "PosthocEMA",
    "ReDo",
    "ReGraMa",
    "Regenerative",
    "SelfDistillation",
    "SelfNormalizedResets",
    "SettingError",
    "SettingWarning",
    "ShrinkPerturb",
    "SpectralDecoupling",
    "SpectralRegularization",
    "Tortoise",
    "Wasserstein",
    "WeightClipping",
    "WeightConsolidation",
    "display_name",
    "find_method",
    "flat_names",
    "half_life",
    "method_parts",
    "momentum_of_half_life",
    "parse_method",
    "register",
    "setting",
    "setting_names",
]
