"""Avalanche: plugins that drop into any pipeline, ready strategies, streams as benchmarks.

Importing this package imports avalanche, which takes several seconds.
"""

from ht_ray.errors import Interrupted

from . import plugins
from .benchmark import ImagePool, PoolDataset, stream_benchmark
from .checkpoint import load_strategy, save_strategy
from .experiences import stream_from_benchmark
from .loading import InMemoryLoading
from .method_strategy import MethodStrategy, make_strategy
from .metrics import PlasticityIndicators, indicator_metrics
from .plugins import *  # noqa: F403
from .plugins.named import *  # noqa: F403 - for type checkers, which do not add lists of names
from .ready import EMA, HareTortoise, HeadReset, LimitedBuffer, Plain, ShrinkPerturb

__all__ = [
    "EMA",
    "HareTortoise",
    "HeadReset",
    "ImagePool",
    "InMemoryLoading",
    "Interrupted",
    "LimitedBuffer",
    "MethodStrategy",
    "Plain",
    "PlasticityIndicators",
    "PoolDataset",
    "ShrinkPerturb",
    "indicator_metrics",
    "load_strategy",
    "make_strategy",
    "save_strategy",
    "stream_benchmark",
    "stream_from_benchmark",
]
__all__ += plugins.__all__
