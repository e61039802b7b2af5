"""Copies, averages and statistics of weights on a GPU: what they do is exact, whatever device holds them."""

from __future__ import annotations

import copy

import pytest
import torch
from small_runs import make_data, make_net, tensors_of
from torch import nn

from ht_ray.mechanisms import WeightCopy, fresh_weights, recalibrate_batchnorm
from ht_ray.methods import Tortoise
from ht_ray.vision import Normalise, evaluate

pytestmark = pytest.mark.gpu


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor.cpu(), right[name].cpu()), name


def shifted(module: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_swap_and_a_second_one_put_every_bit_back(device: torch.device, dtype: torch.dtype) -> None:
    net = make_net("resnet18").to(device, dtype)
    weights = WeightCopy(net)
    shifted(net, 0.1)
    weights.lerp_from(net, 0.3)
    live, held = tensors_of(net), {name: tensor.clone() for name, tensor in weights.tensors.items()}
    weights.swap(net)
    assert_same(tensors_of(net), {name: held[name].to(live[name].dtype) for name in live})
    weights.swap(net)
    assert_same(tensors_of(net), live)
    assert_same(dict(weights.tensors), held)


def test_an_average_is_that_of_the_cpu(device: torch.device) -> None:
    averages = []
    for place in (device, torch.device("cpu")):
        net = make_net("resnet18").to(place)
        tortoise = Tortoise(net, momentum=0.9)
        for step in range(5):
            shifted(net, 0.01 * step)
            tortoise.step()
        averages.append({name: tensor.cpu() for name, tensor in tortoise.weights.tensors.items()})
    assert averages[0].keys() == averages[1].keys()
    for name, tensor in averages[0].items():
        torch.testing.assert_close(tensor, averages[1][name], rtol=1e-6, atol=1e-7)


def test_a_reset_sets_the_hare_to_the_tortoise_in_its_own_tensors(device: torch.device) -> None:
    net = make_net("resnet18").to(device)
    parameters = list(net.parameters())
    addresses = [parameter.data_ptr() for parameter in parameters]
    tortoise = Tortoise(net, momentum=0.5, reset_interval=2, reset_unit="steps")
    shifted(net, 1.0)
    assert not tortoise.step()
    assert float(tortoise.distance()) > 0
    assert tortoise.step()
    assert float(tortoise.distance()) == 0
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert addresses == [parameter.data_ptr() for parameter in net.parameters()]


def test_a_tortoise_follows_its_hare_to_another_device_and_back(device: torch.device) -> None:
    net = make_net("resnet18")
    tortoise = Tortoise(net, momentum=0.9)
    held = {name: tensor.clone() for name, tensor in tortoise.weights.tensors.items()}
    shifted(net, 0.5)
    for place in (device, torch.device("cpu")):
        net.to(place)
        with tortoise.predict() as predicting:
            assert {tensor.device.type for tensor in predicting.state_dict().values()} == {place.type}
            assert_same(tensors_of(predicting), held)
        assert {tensor.device.type for tensor in tortoise.weights.tensors.values()} == {place.type}
    assert_same(dict(tortoise.weights.tensors), held)


def test_a_state_is_loaded_whatever_device_it_is_on(device: torch.device) -> None:
    source, target = make_net("resnet18"), make_net("resnet18").to(device)
    tortoise = Tortoise(shifted(source, 0.3), momentum=0.9)
    other = Tortoise(target, momentum=0.9)
    other.load_state_dict(tortoise.state_dict())
    assert_same(dict(other.weights.tensors), dict(tortoise.weights.tensors))
    assert {tensor.device.type for tensor in other.weights.tensors.values()} == {device.type}


def test_a_trained_tortoise_is_a_network_on_the_device(device: torch.device) -> None:
    net = make_net("resnet18").to(device)
    tortoise = Tortoise(net, momentum=0.9)
    before = tensors_of(net)
    shifted(net, 0.5)
    slow = tortoise.trained_tortoise()
    assert_same(tensors_of(slow), before)
    assert slow(torch.zeros(2, 3, 16, 16, device=device)).device.type == device.type


def test_memory_formats_outlive_swaps_and_resets(device: torch.device) -> None:
    net = make_net("resnet18").to(device, memory_format=torch.channels_last)
    tortoise = Tortoise(net, momentum=0.9)
    with tortoise.predict():
        pass
    tortoise.reset()
    kernels = [parameter for parameter in net.parameters() if parameter.dim() == 4 and parameter.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_fresh_weights_do_not_depend_on_the_device(device: torch.device) -> None:
    net = make_net("vit_tiny")
    expected = fresh_weights(net, seed=3)
    assert_same(fresh_weights(copy.deepcopy(net).to(device), seed=3), expected)


def test_batchnorm_statistics_of_given_inputs_are_those_of_the_cpu(device: torch.device) -> None:
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 16, 16, generator=draw) for _ in range(3)]
    nets = [make_net("resnet18").to(place).train() for place in (device, "cpu")]
    for net in nets:
        assert recalibrate_batchnorm(net, [batch.to(next(net.parameters()).device) for batch in batches]) == 3
        assert all(part.training for part in net.modules())
    found, expected = (tensors_of(net) for net in nets)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert any("running_mean" in name and bool(tensor.ne(0).any()) for name, tensor in found.items())


@pytest.mark.parametrize("batch_size", [100, 33])
def test_an_evaluation_is_that_of_the_cpu_and_leaves_no_trace(device: torch.device, batch_size: int) -> None:
    data, net = make_data("resnet18"), make_net("resnet18")
    expected = evaluate(net, data.test_images, data.test_labels, Normalise(data.mean, data.std))
    net.to(device).train()
    before = tensors_of(net)
    images, labels = data.test_images.to(device), data.test_labels.to(device)
    found = evaluate(net, images, labels, Normalise(data.mean, data.std, device), batch_size=batch_size)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=0.02)
    assert net.training
    assert_same(tensors_of(net), before)
