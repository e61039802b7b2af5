"""What a composition and a loop accept as methods: over one network, several of a kind, states of the same methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from ht_ray.errors import SettingError
from ht_ray.methods import L2, Composition, HareTortoise, HeadReset, Phase, Tortoise
from ht_ray.methods.tortoise import matching_tensors
from ht_ray.vision import ContinualConfig, DataConfig, ModelConfig, fit, load_data, make_model, make_stream


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)


def test_methods_over_another_network_are_refused() -> None:
    one, other = nn.Linear(2, 1), nn.Linear(2, 1)
    with pytest.raises(SettingError, match="methods: L2 is over another network"):
        Composition(one, [L2(other)])
    with pytest.raises(SettingError, match="methods: HareTortoise is over another network"):
        L2(one) + HareTortoise(other)
    data = load_data(DataConfig("digits"))
    model, second = (make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=0) for _ in range(2))
    stream = make_stream(data.train_labels, 10, ContinualConfig(phases=1, epochs=1), seed=0)
    for method in (HareTortoise(second), L2(second) + HareTortoise(second)):
        with pytest.raises(SettingError, match="over another network"):
            fit(model, data, stream, method=method)
    with pytest.raises(SettingError, match="fit: method = 'hare_tortoise': accepted is a MethodConfig, a Method over"):
        fit(model, data, stream, method="hare_tortoise")  # type: ignore[arg-type]


def test_two_of_a_kind_have_states_of_their_own() -> None:
    def made(network: nn.Module) -> Composition:
        return HeadReset(network, head="a", interval=3) + HeadReset(network, head="b", interval=5)

    network = TwoHeads()
    both, optimizer = made(network), SGD(network.parameters(), lr=0.1)
    both.before_phase(Phase(0), optimizer)
    for _ in range(4):
        both.after_step(optimizer)
    state = both.state_dict()
    assert list(state) == ["head_reset", "head_reset 2"] == list(both.describe()["settings"])
    again = made(TwoHeads())
    again.load_state_dict(state)
    assert [method.steps for method in again.methods] == [4, 4]  # type: ignore[attr-defined]
    assert [method.applications for method in again.methods] == [1, 0]  # type: ignore[attr-defined]


def test_a_tortoise_refuses_a_state_of_another_before_it_changes() -> None:
    hare = nn.Linear(2, 1)
    several, tortoise = Tortoise(hare, momenta=(0.5, 0.9)), Tortoise(hare)
    with torch.no_grad():
        hare.weight.add_(1)
    several.average()
    before = {name: value.clone() for name, value in tortoise.weights.tensors.items()}
    with pytest.raises(ValueError, match="the state has 2 averages, and Tortoise 1"):
        tortoise.load_state_dict(several.state_dict())
    with pytest.raises(ValueError, match="the state is not one of Tortoise: it has no weights, "):
        tortoise.load_state_dict(hare.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in tortoise.weights.tensors.items())


def test_settings_in_the_place_of_settings_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"Tortoise: settings = 0.99: accepted is Tortoise.Settings"):
        Tortoise(nn.Linear(2, 1), 0.99)
    with pytest.raises(SettingError, match=r"reset_schedule = 3: accepted is a tuple of numbers"):
        HareTortoise(nn.Linear(2, 1), reset_schedule=3)


def test_a_tied_tensor_is_reset_under_each_of_its_names() -> None:
    network = nn.Module()
    network.embedding, network.head = nn.Embedding(5, 4), nn.Linear(4, 5)
    network.head.weight = network.embedding.weight
    assert matching_tensors("reset_only", ("head",), network) == {"embedding.weight", "head.bias"}
    assert matching_tensors("reset_only", ("head.weight",), network) == {"embedding.weight"}
