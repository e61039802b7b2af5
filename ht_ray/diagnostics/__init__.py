"""Indicators of plasticity, for any ``nn.Module``; torch is all they need.

A measurement leaves no trace: modes, parameters, buffers, gradients, hooks and the global generators are as before,
errors included. It is made in evaluation mode: BatchNorm uses its running statistics, dropout is off.
"""

from ht_ray.diagnostics.curvature import HessianEigenvalues, hessian_eigenvalues, hessian_vector_product
from ht_ray.diagnostics.diagnosis import SIGNS, Diagnosis, Finding, Sign, diagnose
from ht_ray.diagnostics.features import (
    FeatureRecord,
    Ranks,
    effective_rank,
    feature_matrix,
    feature_recorder,
    ranks,
    srank,
    stable_rank,
    zero_activation_ratio,
)
from ht_ray.diagnostics.gradients import (
    GradientCovariance,
    LossGradients,
    gradient_covariance,
    gradient_norm,
    local_redundancy,
    loss_gradients,
    zero_gradient_ratio,
)
from ht_ray.diagnostics.indicators import Indicators
from ht_ray.diagnostics.probe import Probe, plasticity_probe, probe_loss
from ht_ray.diagnostics.registry import (
    INDICATOR_GROUPS,
    INDICATORS,
    UNLABELLED_GROUPS,
    Indicator,
    IndicatorConfig,
    Measurement,
    register_indicator,
)
from ht_ray.diagnostics.units import (
    ACTIVATIONS,
    ActivationRecord,
    activation_recorder,
    dormant_ratios,
    grama_ratios,
    unit_gradient_recorder,
)
from ht_ray.diagnostics.weights import weight_distance, weight_magnitude

__all__ = [
    "ACTIVATIONS",
    "INDICATORS",
    "INDICATOR_GROUPS",
    "SIGNS",
    "UNLABELLED_GROUPS",
    "ActivationRecord",
    "Diagnosis",
    "FeatureRecord",
    "Finding",
    "GradientCovariance",
    "HessianEigenvalues",
    "Indicator",
    "IndicatorConfig",
    "Indicators",
    "LossGradients",
    "Measurement",
    "Probe",
    "Ranks",
    "Sign",
    "activation_recorder",
    "diagnose",
    "dormant_ratios",
    "effective_rank",
    "feature_matrix",
    "feature_recorder",
    "gradient_covariance",
    "gradient_norm",
    "grama_ratios",
    "hessian_eigenvalues",
    "hessian_vector_product",
    "local_redundancy",
    "loss_gradients",
    "plasticity_probe",
    "probe_loss",
    "ranks",
    "register_indicator",
    "srank",
    "stable_rank",
    "unit_gradient_recorder",
    "weight_distance",
    "weight_magnitude",
    "zero_activation_ratio",
    "zero_gradient_ratio",
]
