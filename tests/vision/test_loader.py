"""An epoch visits each sample once, in an order that seed, phase and epoch decide, normalised as torchvision does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from ht_ray.mechanisms import SettingError, generator
from ht_ray.vision import InMemoryLoader, Normalise, random_crop_flip


def numbered(total: int) -> torch.Tensor:
    """Return images of one pixel that tell their own number."""
    return torch.arange(total, dtype=torch.uint8).view(total, 1, 1, 1)


def epoch_of(loader: InMemoryLoader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(loader)


def order_of(loader: InMemoryLoader) -> list[int]:
    return torch.cat([images.flatten() for images, _ in loader]).int().tolist()


@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_visits_each_sample_once_but_for_a_lone_last_one(total: int, size: int, seed: int) -> None:
    indices = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:total]
    loader = InMemoryLoader(numbered(200), indices, indices * 3, normalise=None, batch_size=size, seed=seed)
    batches = epoch_of(loader)
    assert len(batches) == len(loader)
    sizes = [len(labels) for _, labels in batches]
    lone = size > 1 and total > size and total % size == 1
    assert sum(sizes) == total - lone
    assert all(count == size for count in sizes[:-1]) and 0 < sizes[-1] <= size
    assert not (lone and sizes[-1] == 1)
    visited = [int(number) for images, _ in batches for number in images.flatten()]
    assert len(set(visited)) == len(visited) and set(visited) <= set(indices.tolist())
    for images, labels in batches:
        assert torch.equal(images.flatten().long() * 3, labels)


def test_the_sample_left_out_is_another_in_each_epoch() -> None:
    indices = torch.arange(33)
    loader = InMemoryLoader(numbered(33), indices, indices, normalise=None, batch_size=8)
    left_out = {next(iter(set(range(33)) - set(order_of(loader)))) for _ in range(20)}
    assert len(left_out) > 5


def test_the_order_depends_on_seed_phase_and_epoch_alone() -> None:
    indices = torch.arange(51)

    def loader(seed: int = 0, phase: int = 0, size: int = 7) -> InMemoryLoader:
        return InMemoryLoader(numbered(51), indices, indices, normalise=None, batch_size=size, seed=seed, phase=phase)

    orders = {}
    for seed in (0, 1):
        for phase in (0, 1):
            running = loader(seed, phase)
            for epoch in (1, 2, 3):
                assert running.epoch == epoch
                orders[seed, phase, epoch] = tuple(order_of(running))
    assert len(set(orders.values())) == len(orders)
    resumed = loader(1, 1)
    resumed.epoch = 3
    torch.rand(3)
    assert tuple(order_of(resumed)) == orders[1, 1, 3]
    assert sorted(order_of(loader(size=17))) == list(range(51))
    assert tuple(order_of(loader(size=17))) == orders[0, 0, 1]
    expected = torch.randperm(51, generator=generator(1, "shuffle", 1, 2))
    assert orders[1, 1, 2] == tuple(expected.tolist())


def test_an_interrupted_epoch_does_not_disturb_the_next() -> None:
    indices = torch.arange(50)
    one, other = (InMemoryLoader(numbered(50), indices, indices, normalise=None, batch_size=7) for _ in range(2))
    next(iter(one))
    assert one.epoch == 2
    order_of(other)
    assert order_of(one) == order_of(other)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_torchvisions(channels: int) -> None:
    mean, std = [0.1307, 0.48, 0.45][:channels], [0.3081, 0.25, 0.2][:channels]
    images = torch.randint(256, (40, channels, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    ours = Normalise(mean, std)(images)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def images_of(total: int = 20) -> torch.Tensor:
    return torch.randint(1, 256, (total, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_augmentation_is_drawn_by_epoch_before_normalisation(augment: str) -> None:
    images, indices = images_of(), torch.arange(20)
    normalise = Normalise([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])
    loader = InMemoryLoader(
        images, indices, indices, normalise=normalise, batch_size=8, augment=augment, seed=2, phase=3
    )
    seen = []
    for epoch in (1, 2):
        draw = generator(2, "augmentation", 3, epoch)
        for batch, labels in loader:
            expected = normalise(random_crop_flip(images[labels], generator=draw, flip=augment == "crop_flip"))
            assert torch.equal(batch, expected)
            seen.append(batch)
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))
    assert torch.equal(images, images_of())


def test_the_global_generator_is_left_alone() -> None:
    images, indices = images_of(), torch.arange(20)
    state = torch.random.get_rng_state()
    epoch_of(InMemoryLoader(images, indices, indices, normalise=None, augment="crop_flip"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_channels_last_changes_the_layout_only() -> None:
    images, indices = images_of(), torch.arange(20)
    normalise = Normalise([0.5] * 3, [0.2] * 3)
    for (one, _), (other, _) in zip(
        InMemoryLoader(images, indices, indices, normalise=normalise, augment="crop"),
        InMemoryLoader(images, indices, indices, normalise=normalise, augment="crop", channels_last=True),
        strict=True,
    ):
        assert torch.equal(one, other)
        assert other.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"augment": "cropflip"}, "Did you mean 'crop_flip'"),
        ({"labels": torch.arange(6)}, "6 labels for 5 indices"),
    ],
)
def test_wrong_settings_are_refused(chosen: dict, message: str) -> None:
    arguments = {"labels": torch.arange(5)} | chosen
    with pytest.raises(SettingError, match=f"InMemoryLoader: .*{message}"):
        InMemoryLoader(numbered(9), torch.arange(5), normalise=None, **arguments)
