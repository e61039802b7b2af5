"""Avalanche: plugins that drop into any pipeline, ready strategies, streams as benchmarks.

Importing this package imports avalanche, which takes several seconds.
"""

from strategies.benchmark import ImagePool, PoolDataset, stream_benchmark
from strategies.checkpoint import load_strategy, save_strategy
from strategies.loading import InMemoryLoading
from strategies.methods import MethodStrategy, make_strategy, method_plugins
from strategies.plugins import (
    EMAPlugin,
    HareTortoisePlugin,
    HeadResetPlugin,
    LimitedBufferPlugin,
    MeasurePlugin,
    PhaseTrainingPlugin,
    ReinitialisePlugin,
    ShrinkPerturbPlugin,
)
from strategies.ready import EMA, HareTortoise, HeadReset, LimitedBuffer, Plain, ShrinkPerturb

__all__ = [
    "EMA",
    "EMAPlugin",
    "HareTortoise",
    "HareTortoisePlugin",
    "HeadReset",
    "HeadResetPlugin",
    "ImagePool",
    "InMemoryLoading",
    "LimitedBuffer",
    "LimitedBufferPlugin",
    "MeasurePlugin",
    "MethodStrategy",
    "PhaseTrainingPlugin",
    "Plain",
    "PoolDataset",
    "ReinitialisePlugin",
    "ShrinkPerturb",
    "ShrinkPerturbPlugin",
    "load_strategy",
    "make_strategy",
    "method_plugins",
    "save_strategy",
    "stream_benchmark",
]
