"""Avalanche plugins: they decide when, the mechanisms of `ht_ray.mechanisms` decide what."""

from .augment import AugmentPlugin
from .hare_tortoise import EMAPlugin, HareTortoisePlugin
from .limited_buffer import LimitedBufferPlugin
from .measure import MeasurePlugin
from .mechanisms import (
    ContinualBackpropPlugin,
    L2Plugin,
    MechanismPlugin,
    OptimizerResetPlugin,
    ReDoPlugin,
    RegenerativePlugin,
    SelfDistillationPlugin,
    SpectralDecouplingPlugin,
    UPGDPlugin,
    WeightClippingPlugin,
)
from .ordered import OrderedPlugin
from .phase_training import PhaseTrainingPlugin
from .reinitialise import (
    HeadResetPlugin,
    PlasticityInjectionPlugin,
    ReinitialisePlugin,
    ShrinkPerturbPlugin,
)

__all__ = [
    "AugmentPlugin",
    "ContinualBackpropPlugin",
    "EMAPlugin",
    "HareTortoisePlugin",
    "HeadResetPlugin",
    "L2Plugin",
    "LimitedBufferPlugin",
    "MeasurePlugin",
    "MechanismPlugin",
    "OptimizerResetPlugin",
    "OrderedPlugin",
    "PhaseTrainingPlugin",
    "PlasticityInjectionPlugin",
    "ReDoPlugin",
    "RegenerativePlugin",
    "ReinitialisePlugin",
    "SelfDistillationPlugin",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "UPGDPlugin",
    "WeightClippingPlugin",
]
