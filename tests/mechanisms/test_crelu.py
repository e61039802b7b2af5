import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.units.crelu import CReLU, Doubling, Fourier
from ht_ray.methods import MethodConfig
from ht_ray.vision import ModelConfig, make_model


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_both_signs_follow_each_other_along_the_dimension(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=4)))
    dim = data.draw(st.sampled_from([1, -1, 0]))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    wanted = np.concatenate([np.maximum(x.numpy(), 0), np.maximum(-x.numpy(), 0)], axis=dim)
    np.testing.assert_array_equal(CReLU(dim)(x).numpy(), wanted)


def test_input_and_its_size_can_be_told_from_the_output() -> None:
    x = torch.randn(5, 3, 2, 2)
    positive, negative = CReLU()(x).chunk(2, dim=1)
    assert torch.equal(positive - negative, x)
    assert torch.equal(positive + negative, x.abs())


def test_every_input_but_zero_has_a_gradient() -> None:
    x = torch.tensor([[3.0, -3.0, 0.0]], requires_grad=True)
    CReLU()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_default_dimension_is_that_of_features_and_channels() -> None:
    assert nn.Sequential(nn.Linear(4, 3), CReLU(), nn.Linear(6, 2))(torch.zeros(5, 4)).shape == (5, 2)
    assert nn.Sequential(nn.Conv2d(1, 3, 1), CReLU(), nn.Conv2d(6, 2, 1))(torch.zeros(5, 1, 2, 2)).shape == (5, 2, 2, 2)
    assert CReLU(-1)(torch.zeros(5, 7, 3)).shape == (5, 7, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    assert CReLU()(torch.ones(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dim", [1, -1])
def test_fourier_features_are_sine_and_cosine(dim: int) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    wanted = np.concatenate([np.sin(x.numpy()), np.cos(x.numpy())], axis=dim)
    np.testing.assert_allclose(Fourier(dim)(x).numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
def test_a_network_of_either_has_as_many_features_from_half_the_units(activation: str) -> None:
    config = ModelConfig("mlp", hidden=(6, 5), head_hidden=(4,), activation=activation)
    net = make_model(config, shape=(1, 2, 2), num_classes=3, seed=0)
    shapes = [tuple(part.weight.shape) for part in net.modules() if isinstance(part, nn.Linear)]
    assert shapes == [(3, 4), (3, 6), (2, 6), (3, 4)]
    kinds = {type(part) for part in net.modules() if isinstance(part, (nn.ReLU, Doubling))}
    assert kinds == {CReLU if activation == "crelu" else Fourier}


def test_a_network_has_one_of_them() -> None:
    with pytest.raises(SettingError, match="'deep_fourier': the network has crelu in place of ReLU already"):
        MethodConfig("crelu+deep_fourier").model(ModelConfig("mlp"))
    with pytest.raises(SettingError, match="the network has no Fourier"):
        MethodConfig("deep_fourier").build(make_model(ModelConfig("mlp"), shape=(4,), num_classes=2, seed=0))
