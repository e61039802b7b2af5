"""Avalanche plugins: the host of the methods, the named plugins, buffers, augmentation, measurements."""

from . import named
from .augment import AugmentPlugin
from .limited_buffer import LimitedBufferPlugin
from .measure import MeasurePlugin
from .method import MethodPlugin
from .named import *  # noqa: F403 - a plugin of a method is named once
from .phase_training import PhaseTrainingPlugin

__all__ = ["AugmentPlugin", "LimitedBufferPlugin", "MeasurePlugin", "MethodPlugin", "PhaseTrainingPlugin"]
__all__ += [name for name in vars(named) if name.endswith("Plugin")]
