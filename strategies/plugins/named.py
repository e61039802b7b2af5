"""The plugins of single methods, made from their classes."""

from __future__ import annotations

from ht_ray import methods

from .method import named_plugin

__all__ = [
    "ContinualBackpropPlugin",
    "DASHPlugin",
    "EMAPlugin",
    "FIREPlugin",
    "HareTortoisePlugin",
    "HeadResetPlugin",
    "L2Plugin",
    "NormalizeAndProjectPlugin",
    "OptimizerResetPlugin",
    "ParsevalPlugin",
    "PlasticityInjectionPlugin",
    "ReDoPlugin",
    "ReGraMaPlugin",
    "RegenerativePlugin",
    "SelfDistillationPlugin",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "SpectralRegularizationPlugin",
    "UPGDPlugin",
    "WassersteinPlugin",
    "WeightClippingPlugin",
]

ContinualBackpropPlugin = named_plugin(methods.ContinualBackprop)
DASHPlugin = named_plugin(methods.DASH)
EMAPlugin = named_plugin(methods.EMA)
FIREPlugin = named_plugin(methods.FIRE)
HareTortoisePlugin = named_plugin(methods.HareTortoise)
HeadResetPlugin = named_plugin(methods.HeadReset)
L2Plugin = named_plugin(methods.L2)
NormalizeAndProjectPlugin = named_plugin(methods.NormalizeAndProject)
OptimizerResetPlugin = named_plugin(methods.OptimizerReset)
ParsevalPlugin = named_plugin(methods.Parseval)
PlasticityInjectionPlugin = named_plugin(methods.PlasticityInjection)
ReDoPlugin = named_plugin(methods.ReDo)
ReGraMaPlugin = named_plugin(methods.ReGraMa)
RegenerativePlugin = named_plugin(methods.Regenerative)
SelfDistillationPlugin = named_plugin(methods.SelfDistillation)
ShrinkPerturbPlugin = named_plugin(methods.ShrinkPerturb)
SpectralDecouplingPlugin = named_plugin(methods.SpectralDecoupling)
SpectralRegularizationPlugin = named_plugin(methods.SpectralRegularization)
UPGDPlugin = named_plugin(methods.UPGD)
WassersteinPlugin = named_plugin(methods.Wasserstein)
WeightClippingPlugin = named_plugin(methods.WeightClipping)
