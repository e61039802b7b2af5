"""What happens to buffers; the table of the documentation is held to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ht_ray.mechanisms import SettingError
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.methods import HeadReset, SelfDistillation, Tortoise

PAGE = Path(__file__).parents[2] / "docs" / "plain_loop.md"


class BatchRenormLikeTorchs(_BatchNorm):
    """Only the type counts here."""


class Holding(nn.Module):
    """A layer with buffers, as users write them."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)


class OwnBatchNorm(nn.BatchNorm1d):
    """A subclass with a buffer that torch's has not."""

    def __init__(self) -> None:
        super().__init__(3)
        self.register_buffer("slowness", torch.ones(3))


def pruned() -> nn.Module:
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


def materialised() -> nn.Module:
    layer = nn.LazyBatchNorm2d()
    layer(torch.randn(2, 3, 4, 4))
    return layer


def fake_quantize() -> nn.Module:
    layer = FakeQuantize()
    layer(torch.randn(8))
    return layer


#: Layers of each row, by its first cell.
ROWS: dict[str, list[Callable[[], nn.Module]]] = {
    "`BatchNorm1d` and its subclasses, `2d`, `3d`, lazy": [
        lambda: nn.BatchNorm1d(3),
        lambda: nn.BatchNorm2d(3),
        lambda: nn.BatchNorm3d(3).double(),
        materialised,
    ],
    "`SyncBatchNorm`": [lambda: nn.SyncBatchNorm(3)],
    "`InstanceNorm1d`, `2d`, `3d`, with `track_running_stats=True`": [
        lambda: nn.InstanceNorm1d(3, track_running_stats=True),
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        lambda: nn.InstanceNorm3d(3, track_running_stats=True),
    ],
    "`LayerNorm`, `GroupNorm`, `RMSNorm`": [lambda: nn.LayerNorm(3), lambda: nn.GroupNorm(1, 3), lambda: nn.RMSNorm(3)],
    "Batch renormalisation as a subclass of torch's BatchNorm": [lambda: BatchRenormLikeTorchs(3)],
    "Batch renormalisation as a module of its own": [
        lambda: Holding(running_avg_mean=torch.zeros(3), running_avg_std=torch.ones(3))
    ],
    "`RunningMeanStd` and the like, which normalise inputs or returns": [
        lambda: Holding(mean=torch.zeros(3).double(), var=torch.ones(3).double(), count=torch.tensor(1))
    ],
    "`parametrizations.spectral_norm`": [
        lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)),
        lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 3)),
        lambda: parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3))),
    ],
    "`spectral_norm` of `torch.nn.utils`, the older form": [
        lambda: spectral_norm(nn.Linear(4, 3)),
        lambda: spectral_norm(nn.ConvTranspose2d(2, 3, 3)),
    ],
    "`parametrizations.weight_norm`": [lambda: parametrizations.weight_norm(nn.Linear(4, 3))],
    "`weight_norm` of `torch.nn.utils`, the older form": [lambda: weight_norm(nn.Linear(4, 3))],
    "`parametrizations.orthogonal`": [
        lambda: parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="matrix_exp")
    ],
    "`prune` of `torch.nn.utils`": [pruned],
    "`FakeQuantize` and observers": [fake_quantize],
    "Codebooks that are averages themselves": [
        lambda: Holding(codebook=torch.randn(5, 3), cluster_size=torch.ones(5)),
    ],
    "Attention masks, rotary frequencies, position indices": [
        lambda: Holding(
            mask=torch.triu(torch.full((3, 3), -torch.inf), 1),
            frequencies=torch.rand(3),
            index=torch.arange(3),
        ),
    ],
}


def table() -> dict[str, dict[str, str]]:
    """Return what the page says: for each layer, what happens to each buffer."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    assert any(line.startswith("| layer | buffers |") for line in lines)
    next(lines)
    said: dict[str, dict[str, str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        layer, buffers, what = (cell.strip() for cell in line.strip("|").split("|"))
        layer = layer or list(said)[-1]
        said.setdefault(layer, {}).update(dict.fromkeys(re.findall(r"`(\w+)`", buffers), what))
    return said


@torch.no_grad()
def change(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Give every tensor other values of its kind; return the buffers'."""
    draws = torch.Generator().manual_seed(seed)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        new = torch.rand(tensor.shape, generator=draws) + 0.1
        if tensor.is_floating_point() and name.rpartition("_")[2] in ("u", "v"):
            new = nn.functional.normalize(new, dim=0)
        tensor.copy_(new if tensor.is_floating_point() else (new * 100).long())
    return buffers_of(net)


def buffers_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fits(layer: nn.Module) -> bool:
    """Return whether the layer's weight, as it computes, has a largest singular value of 1."""
    layer.eval()
    layer(torch.ones(2, 4) if isinstance(layer, nn.Linear) else torch.ones(2, 2, 3, 3))  # the older form's weight
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    return float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, abs=1e-4)


def test_the_table_has_a_case_for_each_row() -> None:
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize(("row", "make"), [(row, make) for row, makes in ROWS.items() for make in makes])
def test_what_happens_is_what_the_table_says(row: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make()
    net = nn.Sequential(layer)
    said = table()[row]
    tails = {name: name.rpartition(".")[2] for name, _ in net.named_buffers()}
    assert set(tails.values()) == set(said)

    at_first = change(net, 0)
    tortoise = Tortoise(net, momentum=0.5)
    at_step = change(net, 1)
    tortoise.step()
    since = change(net, 2)
    with tortoise.predict():
        predicting = buffers_of(net)
        if "its own" in said.values():
            assert fits(layer)
    assert same(buffers_of(net), since), "a prediction leaves the hare as it was"
    exported = buffers_of(tortoise.trained_tortoise())
    assert same(buffers_of(net), since), "an export leaves the hare as it was"
    tortoise.reset()
    after_reset = buffers_of(net)
    if "its own" in said.values():
        assert fits(layer)

    for name, tail in tails.items():
        if said[tail] == "its own":
            for vectors in (predicting, exported, after_reset):
                assert vectors[name].norm().item() == pytest.approx(1, abs=1e-5)
            continue
        wanted = {
            "averaged": lambda name=name: torch.lerp(at_first[name], at_step[name], 0.5),
            "counted": lambda name=name: at_step[name],
            "the hare's": lambda name=name: since[name],
        }[said[tail]]()
        for found in (predicting, exported, after_reset):
            assert torch.equal(found[name], wanted), (name, said[tail])


def test_only_torchs_own_statistics_of_a_subclass_are_averaged() -> None:
    net = OwnBatchNorm()
    tortoise = Tortoise(net, momentum=0.5)
    with torch.no_grad():
        net.slowness.fill_(3.0)
        net.running_mean.fill_(3.0)
    tortoise.step()
    assert tortoise.weights["slowness"].tolist() == [3.0] * 3
    assert tortoise.weights["running_mean"].tolist() == [1.5] * 3


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1 - 1e-12])
def test_a_mask_is_a_mask_at_any_momentum(momentum: float) -> None:
    net = pruned()
    tortoise = Tortoise(net, momentum=momentum, reset_interval=2, reset_unit="steps")
    for _ in range(3):
        prune.l1_unstructured(net, "weight", amount=0.5)
        tortoise.step()
        with tortoise.predict():
            assert set(net.weight_mask.unique().tolist()) == {0.0, 1.0}
    assert tortoise.resets == 1
    net(torch.ones(1, 4))
    assert (net.weight == 0).sum() == 11  # of 12, half of what is left three times more


def test_what_was_pruned_since_the_last_step_stays_pruned() -> None:
    net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2))
    prune.identity(net[0], "weight")
    tortoise = Tortoise(net, momentum=0.9, reset_interval=1)
    tortoise.step()
    prune.l1_unstructured(net[0], "weight", amount=0.5)  # between the epoch's last step and its end
    assert tortoise.end_epoch()
    net(torch.ones(1, 20))
    assert (net[0].weight == 0).sum() == 200
    exported = tortoise.trained_tortoise()
    assert (exported[0].weight == 0).sum() == 200


def test_pruning_for_the_first_time_keeps_the_average_if_it_is_renamed() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    tortoise = Tortoise(net, momentum=0.5)
    with torch.no_grad():
        net[0].weight.add_(2.0)
    tortoise.step()
    average = tortoise.weights["0.weight"].clone()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    tortoise.weights.rename({"0.weight": "0.weight_orig"})
    tortoise.weights.sync(net)
    assert torch.equal(tortoise.weights["0.weight_orig"], average)


@pytest.mark.parametrize("toward", ["initial", "fresh"])
def test_head_reset_keeps_the_heads_masks(toward: str) -> None:
    net = nn.Sequential()
    net.add_module("body", nn.Linear(4, 4))
    net.add_module("head", nn.Linear(4, 3))
    prune.identity(net.head, "weight")
    first = net.head.weight_orig.detach().clone()
    unpruned = detached_copy(net)
    factory = (lambda: unpruned) if toward == "fresh" else None
    method = HeadReset(net, toward=toward, factory=factory)  # type: ignore[arg-type]
    tortoise = Tortoise(net)
    prune.l1_unstructured(net.head, "weight", amount=0.5)
    mask = net.head.weight_mask.clone()
    with torch.no_grad():
        net.head.weight_orig.add_(1.0)
    method.apply(tortoise)
    assert torch.equal(net.head.weight_mask, mask)
    assert torch.equal(net.head.weight_orig, first)
    assert torch.equal(tortoise.weights["head.weight_orig"], first)


class Quantizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.vq = Holding(codebook=torch.zeros(2), used=torch.zeros(2, dtype=torch.bool))


def test_a_pattern_has_a_buffer_averaged_and_reset() -> None:
    net = Quantizer()
    tortoise = Tortoise(net, momentum=0.75, average_buffers=("*.codebook",))
    net.vq.codebook.fill_(4.0)
    tortoise.step()
    with tortoise.predict():
        assert net.vq.codebook.tolist() == [1.0, 1.0]
    assert net.vq.codebook.tolist() == [4.0, 4.0]
    tortoise.reset()
    assert net.vq.codebook.tolist() == [1.0, 1.0]


def test_a_pattern_may_name_a_shared_buffer_by_either_name() -> None:
    net = nn.ModuleDict({"a": Holding(table=torch.zeros(2)), "b": Holding(other=torch.zeros(2))})
    net["b"].other = net["a"].table
    tortoise = Tortoise(net, momentum=0.5, average_buffers=["b.other"])
    net["a"].table.fill_(1.0)
    tortoise.step()
    assert tortoise.weights["a.table"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("*.codebok",), r"'\*\.codebok' matches no floating-point buffer .* the nearest of its 1 are 'vq\.codebook'"),
        (("*.codebook", "vq.used"), r"'vq\.used' matches no floating-point buffer"),
        (("layer.weight",), r"'layer\.weight' matches no"),
        ("*.codebook", r"average_buffers = '\*\.codebook': accepted is a tuple"),
        ((1,), "accepted is a tuple"),
        (None, "accepted is a tuple"),
    ],
)
def test_patterns_that_match_nothing_are_refused(patterns: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Tortoise(Quantizer(), average_buffers=patterns)  # type: ignore[arg-type]


def test_a_network_without_buffers_says_so() -> None:
    with pytest.raises(SettingError, match=r"'\*' matches no floating-point buffer of the network; it has none"):
        Tortoise(nn.Linear(2, 2), average_buffers=("*",))


def test_states_of_the_version_before_load() -> None:
    """They hold averages of masks and vectors; what is predicted is the hare's, and made for the weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), pruned(), nn.BatchNorm1d(3))
    tortoise = Tortoise(net, momentum=0.9)
    state = copy.deepcopy(tortoise.state_dict())
    for name in ("1.weight_mask", "0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v"):
        state["weights"][name].mul_(0.37)
    weight = state["weights"]["0.parametrizations.weight.original"].clone()
    tortoise.load_state_dict(state)
    with tortoise.predict():
        assert fits(net[0])
        assert set(net[1].weight_mask.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(net[0].parametrizations.weight.original, weight)


def test_the_teacher_of_self_distillation_has_the_hares_present_mask() -> None:
    net = nn.Sequential(pruned())
    tortoise, method = Tortoise(net, momentum=0.9), SelfDistillation(net)
    tortoise.step()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    inputs = torch.randn(5, 4)
    method.before_forward(inputs, tortoise)
    with tortoise.predict(), torch.no_grad():
        wanted = net(inputs)
    assert method.loss(wanted) == pytest.approx(0, abs=1e-6)  # the divergence of the teacher from itself
