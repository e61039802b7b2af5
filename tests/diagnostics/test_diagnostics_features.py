"""Ranks and zero activations against numpy; where the features are found."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from ht_ray.diagnostics import (
    effective_rank,
    feature_matrix,
    feature_recorder,
    loss_gradients,
    ranks,
    srank,
    stable_rank,
    zero_activation_ratio,
)
from ht_ray.errors import SettingError

matrices = arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: 0.0 if abs(x) < 1e-3 else x),
)


def _numpy_ranks(features: np.ndarray, delta: float) -> tuple[float, float, float]:
    values = np.linalg.svd(features, compute_uv=False)
    share = values / values.sum()
    kept = np.cumsum(values) / values.sum()
    positive = share[share > 0]
    entropy = -(positive * np.log(positive)).sum()
    stable = np.linalg.norm(features, "fro") ** 2 / np.linalg.norm(features, 2) ** 2
    return float(np.argmax(kept >= 1 - delta) + 1), float(np.exp(entropy)), float(stable)


@pytest.mark.parametrize("shape", [(64, 20), (20, 64), (1, 5), (5, 1)])
@pytest.mark.parametrize("delta", [0.01, 0.3])
def test_ranks_are_those_of_numpy(shape, delta):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape) * np.logspace(0, -3, shape[1])
    measured = ranks(torch.from_numpy(features), delta)
    assert [rank.item() for rank in measured] == pytest.approx(_numpy_ranks(features, delta), rel=1e-9)
    assert srank(torch.from_numpy(features), delta) == measured.srank
    assert effective_rank(torch.from_numpy(features)) == measured.effective_rank
    assert stable_rank(torch.from_numpy(features)) == measured.stable_rank


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_order_and_bounds_of_the_ranks(features):
    measured = [rank.item() for rank in ranks(torch.from_numpy(features))]
    if not features.any():
        assert measured == [0.0, 0.0, 0.0]
        return
    rank, effective, stable = measured
    most = min(features.shape)
    slack = 1 + 1e-9
    assert 1 <= rank <= most
    assert stable * slack >= 1
    assert stable <= effective * slack
    assert effective <= most * slack


@given(matrices, st.integers(-30, 30), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_ranks_depend_neither_on_scale_nor_on_the_order_of_samples(features, exponent, random):
    order = list(range(len(features)))
    random.shuffle(order)
    # A power of two changes no digit, so that srank's threshold is met on the same side.
    scaled = ranks(torch.from_numpy(features * 2.0**exponent))
    assert [rank.item() for rank in scaled] == [rank.item() for rank in ranks(torch.from_numpy(features))]
    shuffled = ranks(torch.from_numpy(features[order]))
    assert shuffled.effective_rank.item() == pytest.approx(scaled.effective_rank.item(), rel=1e-6)
    assert shuffled.stable_rank.item() == pytest.approx(scaled.stable_rank.item(), rel=1e-6)


def test_orthogonal_and_repeated_features():
    assert [rank.item() for rank in ranks(torch.eye(7) * 1e-20)] == pytest.approx([7, 7, 7], rel=1e-6)
    assert [rank.item() for rank in ranks(torch.ones(9, 5) * 1e30)] == pytest.approx([1, 1, 1], rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_have_no_ranks(bad):
    features = torch.ones(4, 3)
    features[1, 2] = bad
    assert all(torch.isnan(rank) for rank in ranks(features))
    assert torch.isnan(zero_activation_ratio(features))


def test_16_bit_features():
    features = torch.randn(32, 8).bfloat16()
    assert [rank.item() for rank in ranks(features)] == [rank.item() for rank in ranks(features.float())]
    features[:, :2] = 0
    assert zero_activation_ratio(features).item() == 0.25


def test_refusals():
    with pytest.raises(SettingError, match="non-empty matrix"):
        ranks(torch.ones(2, 2, 2))
    with pytest.raises(SettingError, match="delta = 0"):
        ranks(torch.ones(2, 2), 0)


def _split() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Dropout(0.5))
    return encoder, nn.Linear(6, 3)


def test_the_backbone_is_found_by_its_name_its_head_or_as_it_is_given():
    encoder, head = _split()
    inputs = torch.randn(10, 2, 2)
    expected = encoder.eval()(inputs).detach()
    encoder.train()
    named = nn.Sequential(OrderedDict(backbone=encoder, head=head))
    by_head = nn.Sequential(OrderedDict(encoder=encoder, classifier=head))
    for module, backbone in ((named, None), (by_head, None), (by_head, "encoder"), (by_head, encoder)):
        # Products of four rows round otherwise than those of ten, with some kernels.
        torch.testing.assert_close(feature_matrix(module, inputs, backbone=backbone, chunk_size=4), expected)


def test_maps_are_flattened():
    module = nn.Sequential(OrderedDict(backbone=nn.Conv2d(1, 3, 1), head=nn.Flatten()))
    assert feature_matrix(module, torch.randn(5, 1, 4, 4)).shape == (5, 48)


def test_networks_without_such_a_part_are_refused():
    encoder, head = _split()
    module = nn.Sequential(encoder, head)
    for backbone, message in ((None, "name the backbone"), ("encodr", "no such part"), (nn.ReLU(), "no part")):
        with pytest.raises(SettingError, match=message), feature_recorder(module, backbone):
            pass

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(RuntimeError, match="does not call"):
        feature_matrix(Forgetful(), torch.ones(1, 2))


def test_an_activation_in_place_behind_the_backbone_changes_nothing():
    torch.manual_seed(0)
    backbone, last, inputs = nn.Linear(4, 6), nn.Linear(6, 3), torch.randn(10, 4)
    labels = torch.randint(3, (10,))
    found = []
    for inplace in (False, True):
        net = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Sequential(nn.ReLU(inplace=inplace), last)))
        found.append((feature_matrix(net, inputs), *loss_gradients(net, inputs, labels)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert bool((found[1][0] < 0).any())
