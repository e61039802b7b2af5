"""Avalanche plugins: they decide when, the mechanisms of `ht_ray.mechanisms` decide what."""

from strategies.plugins.hare_tortoise import EMAPlugin, HareTortoisePlugin
from strategies.plugins.limited_buffer import LimitedBufferPlugin
from strategies.plugins.measure import MeasurePlugin
from strategies.plugins.phase_training import PhaseTrainingPlugin
from strategies.plugins.reinitialise import HeadResetPlugin, ReinitialisePlugin, ShrinkPerturbPlugin

__all__ = [
    "EMAPlugin",
    "HareTortoisePlugin",
    "HeadResetPlugin",
    "LimitedBufferPlugin",
    "MeasurePlugin",
    "PhaseTrainingPlugin",
    "ReinitialisePlugin",
    "ShrinkPerturbPlugin",
]
