"""Avalanche plugins: they decide when, the mechanisms of `ht_ray.mechanisms` decide what."""

from strategies.plugins.augment import AugmentPlugin
from strategies.plugins.hare_tortoise import EMAPlugin, HareTortoisePlugin
from strategies.plugins.limited_buffer import LimitedBufferPlugin
from strategies.plugins.measure import MeasurePlugin
from strategies.plugins.mechanisms import (
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
from strategies.plugins.ordered import OrderedPlugin
from strategies.plugins.phase_training import PhaseTrainingPlugin
from strategies.plugins.reinitialise import (
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
