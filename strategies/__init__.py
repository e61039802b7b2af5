"""Avalanche: plugins that drop into any pipeline, ready strategies, streams as benchmarks.

Importing this package imports avalanche, which takes several seconds.
"""

from ht_ray.errors import Interrupted

from .benchmark import ImagePool, PoolDataset, stream_benchmark
from .checkpoint import load_strategy, save_strategy
from .loading import InMemoryLoading
from .methods import MethodStrategy, make_strategy, method_plugins
from .metrics import PlasticityIndicators, indicator_metrics
from .plugins import (
    AugmentPlugin,
    ContinualBackpropPlugin,
    EMAPlugin,
    HareTortoisePlugin,
    HeadResetPlugin,
    L2Plugin,
    LimitedBufferPlugin,
    MeasurePlugin,
    MechanismPlugin,
    OptimizerResetPlugin,
    OrderedPlugin,
    PhaseTrainingPlugin,
    PlasticityInjectionPlugin,
    ReDoPlugin,
    RegenerativePlugin,
    ReinitialisePlugin,
    SelfDistillationPlugin,
    ShrinkPerturbPlugin,
    SpectralDecouplingPlugin,
    UPGDPlugin,
    WeightClippingPlugin,
)
from .ready import EMA, HareTortoise, HeadReset, LimitedBuffer, Plain, ShrinkPerturb

__all__ = [
    "EMA",
    "AugmentPlugin",
    "ContinualBackpropPlugin",
    "EMAPlugin",
    "HareTortoise",
    "HareTortoisePlugin",
    "HeadReset",
    "HeadResetPlugin",
    "ImagePool",
    "InMemoryLoading",
    "Interrupted",
    "L2Plugin",
    "LimitedBuffer",
    "LimitedBufferPlugin",
    "MeasurePlugin",
    "MechanismPlugin",
    "MethodStrategy",
    "OptimizerResetPlugin",
    "OrderedPlugin",
    "PhaseTrainingPlugin",
    "Plain",
    "PlasticityIndicators",
    "PlasticityInjectionPlugin",
    "PoolDataset",
    "ReDoPlugin",
    "RegenerativePlugin",
    "ReinitialisePlugin",
    "SelfDistillationPlugin",
    "ShrinkPerturb",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "UPGDPlugin",
    "WeightClippingPlugin",
    "indicator_metrics",
    "load_strategy",
    "make_strategy",
    "method_plugins",
    "save_strategy",
    "stream_benchmark",
]
