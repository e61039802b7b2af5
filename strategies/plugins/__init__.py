"""Avalanche plugins: the host of the methods, the named plugins, buffers, augmentation, measurements."""

from .augment import AugmentPlugin
from .limited_buffer import LimitedBufferPlugin
from .measure import MeasurePlugin
from .method import MethodPlugin
from .named import (
    ContinualBackpropPlugin,
    EMAPlugin,
    HareTortoisePlugin,
    HeadResetPlugin,
    L2Plugin,
    OptimizerResetPlugin,
    PlasticityInjectionPlugin,
    ReDoPlugin,
    RegenerativePlugin,
    SelfDistillationPlugin,
    ShrinkPerturbPlugin,
    SpectralDecouplingPlugin,
    UPGDPlugin,
    WeightClippingPlugin,
)
from .phase_training import PhaseTrainingPlugin

__all__ = [
    "AugmentPlugin",
    "ContinualBackpropPlugin",
    "EMAPlugin",
    "HareTortoisePlugin",
    "HeadResetPlugin",
    "L2Plugin",
    "LimitedBufferPlugin",
    "MeasurePlugin",
    "MethodPlugin",
    "OptimizerResetPlugin",
    "PhaseTrainingPlugin",
    "PlasticityInjectionPlugin",
    "ReDoPlugin",
    "RegenerativePlugin",
    "SelfDistillationPlugin",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "UPGDPlugin",
    "WeightClippingPlugin",
]
