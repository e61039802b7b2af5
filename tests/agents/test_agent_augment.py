"""Shifts against slices of an array padded by numpy, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.agents.augmentation import augment, shift, to_unit
from ht_ray.errors import SettingError


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_shift_is_a_slice_of_the_padded_image(seed: int, batch: int, height: int, width: int, padding: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
    corners = rng.integers(0, 2 * padding + 1, (batch, 2))
    shifted = shift(torch.from_numpy(images), torch.from_numpy(corners), padding=padding)
    for image, (top, left), result in zip(images, corners, shifted.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), (padding, padding), (padding, padding)], mode="edge")
        np.testing.assert_array_equal(result, padded[:, top : top + height, left : left + width])


def test_shifts_are_uniform_and_one_per_image() -> None:
    # Each pixel holds its place, so that the middle pixel tells the shift.
    side, count = 9, 20_000
    places = torch.arange(side * side, dtype=torch.uint8).view(1, 1, side, side).expand(count, 2, side, side)
    shifted = augment(places, generator=torch.Generator().manual_seed(0), intensity=0.0)
    middle = (shifted[:, :, 4, 4] * 255).round().long()
    assert (middle[:, 0] == middle[:, 1]).all()
    counts = torch.bincount(middle[:, 0], minlength=81).double()
    expected = count / 81
    # 80 degrees of freedom: a sum of squares above 124.8 has a probability of 0.001.
    assert ((counts - expected) ** 2 / expected).sum() < 124.8


def test_brightness_is_one_clipped_factor_per_image() -> None:
    count = 20_000
    frames = torch.full((count, 2, 3, 3), 255, dtype=torch.uint8)
    factors = augment(frames, generator=torch.Generator().manual_seed(1))
    assert (factors == factors[:, :1, :1, :1]).all()
    normal = ((factors[:, 0, 0, 0] - 1) / 0.05).double()
    assert normal.abs().max() <= 2 + 1e-4
    # A standard normal variable lies above 2 with Q = 0.02275, where its density is 0.05399.
    clipped = (normal.abs() > 2 - 1e-4).double().mean().item()
    assert abs(clipped - 0.0455) < 0.005
    variance = 1 - 2 * (2 * 0.05399 + 0.02275 - 4 * 0.02275)
    assert abs(normal.var().item() - variance) < 0.03


def test_the_generator_decides() -> None:
    frames = torch.randint(0, 256, (4, 4, 84, 84), dtype=torch.uint8)
    before = torch.get_rng_state()
    one, two, three = (augment(frames, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), before)
    off = augment(frames, generator=torch.Generator().manual_seed(0), padding=0, intensity=0.0)
    torch.testing.assert_close(off, to_unit(frames))


def test_wrong_input_is_named() -> None:
    with pytest.raises(SettingError, match=r"\(B, C, H, W\)"):
        augment(torch.zeros(4, 84, 84, dtype=torch.uint8), generator=torch.Generator())
    with pytest.raises(SettingError, match="padding"):
        augment(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), generator=torch.Generator(), padding=-1)


@pytest.mark.gpu
def test_a_cpu_generator_draws_the_same_for_a_gpu() -> None:
    frames = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    on_cpu = augment(frames, generator=torch.Generator().manual_seed(0))
    on_gpu = augment(frames.cuda(), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)
