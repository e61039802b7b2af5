"""The plugins of single methods, made from their classes."""

from __future__ import annotations

from ht_ray.methods import (
    AID,
    DASH,
    EMA,
    FIRE,
    L2,
    TRAC,
    UPGD,
    ContinualBackprop,
    HareTortoise,
    HeadReset,
    Muon,
    NormalizeAndProject,
    OptimizerReset,
    Parseval,
    PlasticityInjection,
    ReDo,
    Regenerative,
    ReGraMa,
    SelfDistillation,
    SelfNormalizedResets,
    ShrinkPerturb,
    SpectralDecoupling,
    SpectralRegularization,
    Wasserstein,
    WeightClipping,
    WeightConsolidation,
)

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
DASHPlugin = named_plugin(DASH)
FIREPlugin = named_plugin(FIRE)
ParsevalPlugin = named_plugin(Parseval)
SpectralRegularizationPlugin = named_plugin(SpectralRegularization)
WassersteinPlugin = named_plugin(Wasserstein)
NormalizeAndProjectPlugin = named_plugin(NormalizeAndProject)
MuonPlugin = named_plugin(Muon)
AIDPlugin = named_plugin(AID)
SelfNormalizedResetsPlugin = named_plugin(SelfNormalizedResets)
TRACPlugin = named_plugin(TRAC)
WeightConsolidationPlugin = named_plugin(WeightConsolidation)
