"""The plugins of single methods, made from their classes."""

from __future__ import annotations

from ht_ray.methods import (
    EMA,
    L2,
    UPGD,
    ContinualBackprop,
    HareTortoise,
    HeadReset,
    OptimizerReset,
    PlasticityInjection,
    ReDo,
    Regenerative,
    ReGraMa,
    SelfDistillation,
    ShrinkPerturb,
    SpectralDecoupling,
    WeightClipping,
)

from .method import named_plugin

__all__ = [
    "ContinualBackpropPlugin",
    "EMAPlugin",
    "HareTortoisePlugin",
    "HeadResetPlugin",
    "L2Plugin",
    "OptimizerResetPlugin",
    "PlasticityInjectionPlugin",
    "ReDoPlugin",
    "ReGraMaPlugin",
    "RegenerativePlugin",
    "SelfDistillationPlugin",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "UPGDPlugin",
    "WeightClippingPlugin",
]

ContinualBackpropPlugin = named_plugin(ContinualBackprop)
EMAPlugin = named_plugin(EMA)
HareTortoisePlugin = named_plugin(HareTortoise)
HeadResetPlugin = named_plugin(HeadReset)
L2Plugin = named_plugin(L2)
OptimizerResetPlugin = named_plugin(OptimizerReset)
PlasticityInjectionPlugin = named_plugin(PlasticityInjection)
ReDoPlugin = named_plugin(ReDo)
ReGraMaPlugin = named_plugin(ReGraMa)
RegenerativePlugin = named_plugin(Regenerative)
SelfDistillationPlugin = named_plugin(SelfDistillation)
ShrinkPerturbPlugin = named_plugin(ShrinkPerturb)
SpectralDecouplingPlugin = named_plugin(SpectralDecoupling)
UPGDPlugin = named_plugin(UPGD)
WeightClippingPlugin = named_plugin(WeightClipping)
