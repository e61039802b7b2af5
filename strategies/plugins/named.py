"""The plugins of single methods, made from their classes. Nothing else here has a public name."""

from ht_ray import methods as _methods

from .method import named_plugin as _named

ContinualBackpropPlugin = _named(_methods.ContinualBackprop)
EMAPlugin = _named(_methods.EMA)
HareTortoisePlugin = _named(_methods.HareTortoise)
HeadResetPlugin = _named(_methods.HeadReset)
L2Plugin = _named(_methods.L2)
OptimizerResetPlugin = _named(_methods.OptimizerReset)
PlasticityInjectionPlugin = _named(_methods.PlasticityInjection)
ReDoPlugin = _named(_methods.ReDo)
ReGraMaPlugin = _named(_methods.ReGraMa)
RegenerativePlugin = _named(_methods.Regenerative)
SelfDistillationPlugin = _named(_methods.SelfDistillation)
ShrinkPerturbPlugin = _named(_methods.ShrinkPerturb)
SpectralDecouplingPlugin = _named(_methods.SpectralDecoupling)
UPGDPlugin = _named(_methods.UPGD)
WeightClippingPlugin = _named(_methods.WeightClipping)
DASHPlugin = _named(_methods.DASH)
FIREPlugin = _named(_methods.FIRE)
ParsevalPlugin = _named(_methods.Parseval)
SpectralRegularizationPlugin = _named(_methods.SpectralRegularization)
WassersteinPlugin = _named(_methods.Wasserstein)
NormalizeAndProjectPlugin = _named(_methods.NormalizeAndProject)
MuonPlugin = _named(_methods.Muon)
AIDPlugin = _named(_methods.AID)
SelfNormalizedResetsPlugin = _named(_methods.SelfNormalizedResets)
TRACPlugin = _named(_methods.TRAC)
WeightConsolidationPlugin = _named(_methods.WeightConsolidation)
