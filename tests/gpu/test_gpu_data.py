"""Batches on a GPU are those of the CPU: what is drawn, cropped and gathered is the same to the bit."""

from __future__ import annotations

import pytest
import torch
from small_runs import make_data

from ht_ray.mechanisms import generator
from ht_ray.vision import InMemoryLoader, Normalise, random_crop_flip

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["uint8", "float32"])
@pytest.mark.parametrize("flip", [False, True], ids=["crop", "crop and flip"])
def test_augmented_images_are_those_of_the_cpu(device: torch.device, dtype: torch.dtype, flip: bool) -> None:
    images = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = random_crop_flip(images, generator=generator(0, "test"), flip=flip)
    found = random_crop_flip(images.to(device), generator=generator(0, "test"), flip=flip)
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), expected)


def test_padding_takes_the_value_of_each_channel(device: torch.device) -> None:
    images, fill = torch.rand(16, 3, 8, 8), torch.tensor([-1.0, 2.0, 3.0])
    expected = random_crop_flip(images, generator=generator(0, "test"), fill=fill)
    found = random_crop_flip(images.to(device), generator=generator(0, "test"), fill=fill.to(device))
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_a_loader_gives_the_batches_of_the_cpu(device: torch.device, augment: str) -> None:
    data = make_data("resnet18", count=70)
    chosen = torch.arange(0, 70, 2)

    def epochs(place: torch.device | str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        loader = InMemoryLoader(
            data.train_images.to(place),
            chosen,
            data.train_labels[chosen],
            normalise=None,
            batch_size=16,
            augment=augment,
            seed=3,
        )
        return [(images, labels) for _ in range(2) for images, labels in loader]

    found, expected = epochs(device), epochs("cpu")
    assert [len(labels) for _, labels in found] == [16, 16, 3] * 2
    for (images, labels), (wanted_images, wanted_labels) in zip(found, expected, strict=True):
        assert images.device.type == labels.device.type == device.type
        assert torch.equal(images.cpu(), wanted_images)
        assert torch.equal(labels.cpu(), wanted_labels)


def test_normalised_images_agree_to_a_unit_in_the_last_place(device: torch.device) -> None:
    data = make_data("resnet18", count=64)
    found = Normalise(data.mean, data.std, device)(data.train_images.to(device)).cpu()
    torch.testing.assert_close(found, Normalise(data.mean, data.std)(data.train_images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_come_in_the_memory_format_that_is_asked_for(device: torch.device, channels_last: bool) -> None:
    data = make_data("resnet18", count=32)
    loader = InMemoryLoader(
        data.train_images.to(device),
        torch.arange(32),
        data.train_labels,
        normalise=Normalise(data.mean, data.std, device),
        batch_size=8,
        augment="crop_flip",
        channels_last=channels_last,
    )
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert all(images.is_contiguous(memory_format=wanted) for images, _ in loader)
