"""Plugins of single methods, made from their classes, whose settings they take."""

from __future__ import annotations

from ht_ray import methods

from .method import named_plugin

__all__ = [
    "AIDPlugin",
    "ContinualBackpropPlugin",
    "DASHPlugin",
    "EMAPlugin",
    "FIREPlugin",
    "HareTortoisePlugin",
    "HeadResetPlugin",
    "L2Plugin",
    "MuonPlugin",
    "NormalizeAndProjectPlugin",
    "OptimizerResetPlugin",
    "ParsevalPlugin",
    "PlasticityInjectionPlugin",
    "ReDoPlugin",
    "ReGraMaPlugin",
    "RegenerativePlugin",
    "SelfDistillationPlugin",
    "SelfNormalizedResetsPlugin",
    "ShrinkPerturbPlugin",
    "SpectralDecouplingPlugin",
    "SpectralRegularizationPlugin",
    "TRACPlugin",
    "UPGDPlugin",
    "WassersteinPlugin",
    "WeightClippingPlugin",
    "WeightConsolidationPlugin",
]

ContinualBackpropPlugin = named_plugin(methods.ContinualBackprop)
EMAPlugin = named_plugin(methods.EMA)
HareTortoisePlugin = named_plugin(methods.HareTortoise)
HeadResetPlugin = named_plugin(methods.HeadReset)
L2Plugin = named_plugin(methods.L2)
OptimizerResetPlugin = named_plugin(methods.OptimizerReset)
PlasticityInjectionPlugin = named_plugin(methods.PlasticityInjection)
ReDoPlugin = named_plugin(methods.ReDo)
ReGraMaPlugin = named_plugin(methods.ReGraMa)
RegenerativePlugin = named_plugin(methods.Regenerative)
SelfDistillationPlugin = named_plugin(methods.SelfDistillation)
ShrinkPerturbPlugin = named_plugin(methods.ShrinkPerturb)
SpectralDecouplingPlugin = named_plugin(methods.SpectralDecoupling)
UPGDPlugin = named_plugin(methods.UPGD)
WeightClippingPlugin = named_plugin(methods.WeightClipping)
DASHPlugin = named_plugin(methods.DASH)
FIREPlugin = named_plugin(methods.FIRE)
ParsevalPlugin = named_plugin(methods.Parseval)
SpectralRegularizationPlugin = named_plugin(methods.SpectralRegularization)
WassersteinPlugin = named_plugin(methods.Wasserstein)
NormalizeAndProjectPlugin = named_plugin(methods.NormalizeAndProject)
MuonPlugin = named_plugin(methods.Muon)
AIDPlugin = named_plugin(methods.AID)
SelfNormalizedResetsPlugin = named_plugin(methods.SelfNormalizedResets)
TRACPlugin = named_plugin(methods.TRAC)
WeightConsolidationPlugin = named_plugin(methods.WeightConsolidation)
