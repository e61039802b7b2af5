"""Streams: sizes, membership and noise are those of the protocol, for every setting."""

from __future__ import annotations

import dataclasses
import pickle
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ht_ray.mechanisms import SettingError, generator
from ht_ray.vision import (
    STREAMS,
    ContinualConfig,
    Phase,
    Stream,
    StreamConfig,
    WarmStartConfig,
    continual,
    make_stream,
    noise_schedule,
    noisy_labels,
    register_stream,
    stream_config,
    warm_start,
)


def labels_of(total: int, classes: int) -> torch.Tensor:
    return torch.randint(classes, (total,), generator=torch.Generator().manual_seed(total))


def equal(one: Stream, other: Stream) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.indices, b.indices)
        and torch.equal(a.labels, b.labels)
        and (a.index, a.epochs, a.noise, a.new) == (b.index, b.epochs, b.noise, b.new)
        for a, b in zip(one, other, strict=True)
    )


@st.composite
def continual_settings(draw: st.DrawFn) -> tuple[torch.Tensor, int, ContinualConfig, int]:
    phases = draw(st.integers(1, 12))
    classes = draw(st.integers(2, 7))
    config = ContinualConfig(
        phases=phases,
        epochs=draw(st.integers(1, 9)),
        chunk_ratio=draw(st.none() | st.floats(0.3 / phases, 1 / phases)),
        noise=draw(st.sampled_from(["paper", "linear", "none", "0.3"])),
        access=draw(st.sampled_from(["full", "buffer", "new"])),
        buffer_size=draw(st.integers(1, 120)),
        noise_rule=draw(st.sampled_from(["uniform", "other"])),
    )
    return labels_of(draw(st.integers(10 * phases, 200)), classes), classes, config, draw(st.integers(0, 3))


@given(continual_settings())
@settings(deadline=None)
def test_continual_phases_hold_what_the_access_allows(given_settings) -> None:
    labels, classes, config, seed = given_settings
    stream = continual(labels, classes, config, seed=seed)
    total = len(labels)
    assert len(stream) == config.phases
    assert stream.epochs == config.phases * config.epochs
    assert [phase.index for phase in stream] == list(range(config.phases))
    chunks = [phase.indices[: phase.new] for phase in stream]
    arrived = torch.cat(chunks)
    assert len(arrived.unique()) == len(arrived)  # disjoint
    ratio = config.chunk_ratio or 1 / config.phases
    assert len(arrived) == round(config.phases * ratio * total)
    assert all(abs(len(chunk) - ratio * total) <= 1 for chunk in chunks)
    held: set[int] = set()
    for k, phase in enumerate(stream):
        older = phase.indices[phase.new :].tolist()
        seen = set(torch.cat(chunks[:k]).tolist()) if k else set()
        assert len(older) == len(set(older))
        if config.access == "full":
            assert set(older) == seen
        elif config.access == "new":
            assert older == []
        else:
            assert len(older) == min(config.buffer_size, len(seen))
            assert set(older) <= seen
            if k:
                assert set(older) <= held | set(chunks[k - 1].tolist())
            held = set(older)
        wrong = int((phase.labels != labels[phase.indices]).sum())
        redrawn = round(phase.noise * len(phase))
        assert wrong == redrawn if config.noise_rule == "other" else wrong <= redrawn
        assert phase.labels.min() >= 0 and phase.labels.max() < classes
        assert phase.indices.dtype == phase.labels.dtype == torch.int64
    assert tuple(phase.noise for phase in stream) == noise_schedule(config.noise, config.phases)
    assert equal(stream, make_stream(labels, classes, config, seed=seed))


@given(continual_settings())
@settings(deadline=None, max_examples=30)
def test_the_new_chunks_are_the_same_under_every_access_and_noise(given_settings) -> None:
    labels, classes, config, seed = given_settings
    stream = continual(labels, classes, config, seed=seed)
    plain = continual(labels, classes, dataclasses.replace(config, access="new", noise="none"), seed=seed)
    for one, other in zip(stream, plain, strict=True):
        assert torch.equal(one.indices[: one.new], other.indices)
    everything = dataclasses.replace(config, access="buffer", buffer_size=len(labels))
    full = dataclasses.replace(config, access="full")
    assert equal(continual(labels, classes, everything, seed=seed), continual(labels, classes, full, seed=seed))


def test_label_noise_depends_on_seed_and_phase_alone() -> None:
    labels = labels_of(100, 5)
    stream = continual(labels, 5, ContinualConfig(phases=4, access="buffer", buffer_size=10, noise="0.5"), seed=3)
    for phase in reversed(stream.phases):
        draw = generator(3, "label noise", phase.index)
        assert torch.equal(phase.labels, noisy_labels(labels[phase.indices], 0.5, 5, generator=draw))


def test_another_seed_gives_another_stream() -> None:
    labels = labels_of(100, 5)
    for config in (ContinualConfig(), WarmStartConfig()):
        one, other = (make_stream(labels, 5, config, seed=seed) for seed in (0, 1))
        assert not torch.equal(one[0].indices, other[0].indices)
        assert not torch.equal(one[0].labels, other[0].labels)


def test_the_buffer_is_uniform_over_everything_seen() -> None:
    labels = torch.zeros(60, dtype=torch.int64)
    config = ContinualConfig(phases=6, access="buffer", buffer_size=10, noise="none")
    share = torch.zeros(60)  # by place in the order of arrival
    for seed in range(1500):
        stream = continual(labels, 2, config, seed=seed)
        order = torch.cat([phase.indices[: phase.new] for phase in stream])
        share += torch.isin(order, stream[5].indices[10:]).float()
    expected = 1500 * 10 / 50
    assert share[50:].sum() == 0
    statistic = ((share[:50] - expected) ** 2 / expected).sum().item() / (1 - 10 / 50)
    assert 0.001 < stats.chi2.sf(statistic, df=49) < 0.999


@given(st.integers(0, 300), st.floats(0, 1), st.integers(2, 9), st.integers(0, 99))
def test_noise_changes_exactly_so_many_labels(total: int, ratio: float, classes: int, seed: int) -> None:
    labels = labels_of(total, classes)
    before = labels.clone()
    noisy = noisy_labels(labels, ratio, classes, rule="other", generator=torch.Generator().manual_seed(seed))
    assert int((noisy != labels).sum()) == round(ratio * total)
    assert torch.equal(labels, before)
    assert noisy.data_ptr() != labels.data_ptr() or total == 0


@pytest.mark.parametrize(("rule", "effective"), [("uniform", 0.5 * (1 - 1 / 10)), ("other", 0.5)])
def test_the_effective_rate_is_that_of_the_rule_and_the_draws_are_uniform(rule: str, effective: float) -> None:
    labels = torch.full((200_000,), 3)
    noisy = noisy_labels(labels, 0.5, 10, rule=rule, generator=torch.Generator().manual_seed(0))
    rate = (noisy != labels).double().mean().item()
    assert rate == pytest.approx(effective, abs=4 * (0.25 * 0.09 / 200_000) ** 0.5)
    drawn = torch.bincount(noisy, minlength=10)
    drawn[3] -= 100_000  # those that were not redrawn
    if rule == "other":
        assert drawn[3] == 0
        drawn = torch.cat([drawn[:3], drawn[4:]])
    assert stats.chisquare(drawn.numpy()).pvalue > 0.001


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"ratio": 1.2}, "ratio = 1.2"),
        ({"rule": "others"}, "Did you mean 'other'"),
        ({"rule": "other", "num_classes": 1}, "num_classes = 1: accepted is a whole number with 2 <= num_classes"),
    ],
)
def test_impossible_noise_is_refused(chosen: dict, message: str) -> None:
    arguments = {"ratio": 0.5, "num_classes": 3} | chosen
    with pytest.raises(SettingError, match=message):
        noisy_labels(torch.zeros(4, dtype=torch.int64), generator=torch.Generator(), **arguments)


def test_schedules_are_the_protocols() -> None:
    assert noise_schedule("paper", 10) == (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0)
    assert noise_schedule("linear", 6) == pytest.approx((0.5, 0.4, 0.3, 0.2, 0.1, 0.0))
    assert noise_schedule("linear", 6)[-1] == 0
    assert noise_schedule("paper", 1) == (0.5,)
    assert noise_schedule("none", 3) == (0, 0, 0)
    assert noise_schedule("0.2", 3) == noise_schedule([0.2], 3) == (0.2, 0.2, 0.2)
    assert noise_schedule("0.5, 0.25,0", 3) == noise_schedule((0.5, 0.25, 0), 3) == (0.5, 0.25, 0.0)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("papr", "Did you mean 'paper'"),
        ("0.5,", "accepted are"),
        ("0.5,0.2", "one for each of the 3 phases"),
        ([], "one for each of the 3 phases"),
        ("1.5", "noise = 1.5: accepted is a number with 0 <= noise <= 1"),
        ("nan", "noise = nan"),
    ],
)
def test_wrong_schedules_are_refused(noise, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        noise_schedule(noise, 3)


@pytest.mark.parametrize(
    ("ratio", "epochs"), [(0.1, 1000), (0.2, 500), (0.3, 333), (0.4, 250), (0.6, 166), (0.8, 125), (1.0, 100)]
)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_warm_starting_is_a_noisy_subset_and_then_the_clean_whole(ratio: float, epochs: int, noise: float) -> None:
    labels = labels_of(500, 10)
    stream = warm_start(labels, 10, WarmStartConfig(subset_ratio=ratio, label_noise=noise, noise_rule="other"), seed=1)
    first, second = stream
    assert (first.epochs, second.epochs, stream.epochs) == (epochs, 100, epochs + 100)
    assert len(first) == first.new == len(first.indices.unique()) == round(ratio * 500)
    assert int((first.labels != labels[first.indices]).sum()) == round(noise * len(first))
    assert torch.equal(second.indices.sort().values, torch.arange(500))
    assert torch.equal(second.labels, labels[second.indices])
    assert second.labels.data_ptr() != labels.data_ptr()
    assert (first.noise, second.noise) == (noise, 0.0)
    assert second.new == 500 - len(first)


def test_the_subset_grows_with_its_ratio_and_epochs_may_be_set() -> None:
    labels = labels_of(100, 3)
    small, large = (warm_start(labels, 3, WarmStartConfig(subset_ratio=r), seed=0)[0] for r in (0.2, 0.6))
    assert torch.equal(small.indices, large.indices[:20])
    assert warm_start(labels, 3, WarmStartConfig(warm_epochs=7), seed=0)[0].epochs == 7
    assert len(warm_start(labels[:4], 3, WarmStartConfig(subset_ratio=0.01), seed=0)[0]) == 1


def test_fresh_training_is_the_second_phase_alone() -> None:
    labels = labels_of(100, 3)
    (alone,) = warm_start(labels, 3, WarmStartConfig(epochs=7, fresh=True), seed=2)
    second = warm_start(labels, 3, WarmStartConfig(epochs=7), seed=2)[1]
    assert (alone.index, alone.epochs, alone.noise, alone.new) == (0, second.epochs, second.noise, 100)
    assert torch.equal(alone.indices, second.indices)
    assert torch.equal(alone.labels, second.labels)
    assert alone.labels.data_ptr() != labels.data_ptr()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContinualConfig(phases=0), "phases = 0"),
        (lambda: ContinualConfig(epochs=2.5), "epochs = 2.5: accepted is a whole number"),
        (lambda: ContinualConfig(phases=4, chunk_ratio=0.3), "chunk_ratio = 0.3.*chunk_ratio <= 0.25"),
        (lambda: ContinualConfig(chunk_ratio=0.0), "0 < chunk_ratio"),
        (lambda: ContinualConfig(access="limited"), "accepted are 'full', 'buffer', 'new'"),
        (lambda: ContinualConfig(buffer_size=0), "buffer_size = 0"),
        (lambda: ContinualConfig(noise_rule="unifrom"), "Did you mean 'uniform'"),
        (lambda: ContinualConfig(noise="0.5,0.1"), "one for each of the 10 phases"),
        (lambda: WarmStartConfig(subset_ratio=0), "0 < subset_ratio <= 1"),
        (lambda: WarmStartConfig(label_noise=-0.1), "label_noise = -0.1"),
        (lambda: WarmStartConfig(epochs=0), "epochs = 0"),
        (lambda: WarmStartConfig(warm_epochs=0), "warm_epochs = 0"),
        (lambda: WarmStartConfig(noise_rule="same"), "noise_rule = 'same'"),
        (lambda: continual(torch.zeros(9), 2, ContinualConfig(), seed=0), "training set of 9 samples is too small"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(make, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize("name", ["continual", "warm_start"])
def test_a_stream_is_made_by_name_by_settings_and_by_configuration(name: str) -> None:
    labels = labels_of(100, 5)
    config = stream_config(name, epochs=7)
    assert (type(config), config.name, config.epochs) == (STREAMS[name], name, 7)
    assert pickle.loads(pickle.dumps(config)) == config
    by_name = make_stream(labels, 5, name, seed=3)
    assert by_name.name == name
    assert equal(by_name, make_stream(labels, 5, STREAMS[name](), seed=3))


@patch.dict(STREAMS)
def test_a_stream_is_added_by_one_class() -> None:
    @register_stream("halves")
    @dataclasses.dataclass(frozen=True)
    class HalvesConfig(StreamConfig):
        epochs: int = 2

        def make(self, labels: torch.Tensor, num_classes: int, *, seed: int) -> Stream:
            half = len(labels) // 2
            parts = (torch.arange(half), torch.arange(half, 2 * half))
            return Stream(self.name, tuple(Phase(k, self.epochs, p, labels[p], 0.0, half) for k, p in enumerate(parts)))

    stream = make_stream(labels_of(10, 2), 2, stream_config("halves", epochs=3), seed=0)
    assert (stream.name, [phase.epochs for phase in stream], [len(phase) for phase in stream]) == (
        "halves",
        [3] * 2,
        [5] * 2,
    )
    with pytest.raises(SettingError, match="'halves': accepted is a name that no other stream has"):
        register_stream("halves")(HalvesConfig)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_stream(labels_of(9, 2), 2, "continaul", seed=0), "'continaul': .* Did you mean 'continual'"),
        (lambda: make_stream(labels_of(9, 2), 2, {"epochs": 2}, seed=0), "accepted are 'continual', 'warm_start'"),
        (lambda: stream_config("warmstart"), "Did you mean 'warm_start'"),
        (lambda: stream_config("warm_start", warm_epoch=3), "WarmStartConfig: setting = 'warm_epoch': .*'warm_epochs'"),
        (lambda: stream_config("continual", phases=0), "phases = 0"),
    ],
)
def test_unknown_streams_and_settings_are_refused_with_the_nearest(make, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
