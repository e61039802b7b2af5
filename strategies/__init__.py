"""Avalanche: plugins that drop into any pipeline, ready strategies, streams as benchmarks.

Importing this package imports avalanche, which takes several seconds.
"""

from ht_ray.errors import Interrupted

from .benchmark import ImagePool, PoolDataset, stream_benchmark
from .checkpoint import load_strategy, save_strategy
from .loading import InMemoryLoading
from .method_strategy import MethodStrategy, make_strategy
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
    MethodPlugin,
    OptimizerResetPlugin,
    PhaseTrainingPlugin,
    PlasticityInjectionPlugin,
    ReDoPlugin,
    RegenerativePlugin,
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
    "MethodPlugin",
    "MethodStrategy",
    "OptimizerResetPlugin",
    "PhaseTrainingPlugin",
    "Plain",
    "PlasticityIndicators",
    "PlasticityInjectionPlugin",
    "PoolDataset",
    "ReDoPlugin",
    "RegenerativePlugin",
    "SelfDistillationPlugin",
    "ShrinkPerturb",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "UPGDPlugin",
    "WeightClippingPlugin",
    "indicator_metrics",
    "load_strategy",
    "make_strategy",
    "save_strategy",
    "stream_benchmark",
]
