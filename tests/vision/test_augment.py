import pytest
import torch
import torchvision.transforms.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import isolated_rng
from ht_ray.vision.data.augment import crop_flip, random_crop_flip
from ht_ray.vision.data.loader import Normalise


def pixels(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    # No pixel is zero, so that padding can be told from the image.
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def one_by_one(images: torch.Tensor, corners: torch.Tensor, flips: torch.Tensor | None, padding: int) -> torch.Tensor:
    height, width = images.shape[2:]
    augmented = []
    for index, image in enumerate(images):
        top, left = corners[index].tolist()
        out = reference.crop(reference.pad(image, [padding]), top, left, height, width)
        augmented.append(reference.hflip(out) if flips is not None and flips[index] else out)
    return torch.stack(augmented)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_image_is_what_torchvision_makes_of_it(data):
    batch, channels, height, width = (data.draw(st.integers(1, high)) for high in (5, 3, 9, 9))
    padding = data.draw(st.integers(0, 5))
    dtype = data.draw(st.sampled_from([torch.uint8, torch.float32, torch.bfloat16]))
    images = pixels(batch, channels, height, width, dtype=dtype)
    if data.draw(st.booleans()):
        images = images.to(memory_format=torch.channels_last)
    place = st.integers(0, 2 * padding)
    corners = torch.tensor(data.draw(st.lists(st.tuples(place, place), min_size=batch, max_size=batch)))
    flips = data.draw(st.none() | st.lists(st.booleans(), min_size=batch, max_size=batch).map(torch.tensor))
    original = images.clone()

    out = crop_flip(images, corners, flips, padding=padding)

    assert out.dtype == dtype and out.is_contiguous()
    assert torch.equal(out, one_by_one(images, corners, flips, padding))
    assert torch.equal(images, original)


def test_draws_cover_every_place_and_flip_evenly():
    batch, padding = 40_000, 2
    # A bright pixel in the middle tells where its image was cropped, its darker right neighbour whether it was flipped.
    images = torch.zeros(batch, 1, 7, 7, dtype=torch.uint8)
    images[:, 0, 3, 3], images[:, 0, 3, 4] = 2, 1
    out = random_crop_flip(images, generator=torch.Generator().manual_seed(1), padding=padding)
    flat = out.flatten(1)
    bright, dark = flat.argmax(1), (flat == 1).int().argmax(1)
    flipped = dark < bright
    kinds = torch.stack([bright // 7, bright % 7, flipped.long()], 1).unique(dim=0, return_counts=True)
    assert len(kinds[0]) == 5 * 5 * 2
    expected = batch / 50
    chi_squared = ((kinds[1] - expected) ** 2 / expected).sum().item()
    assert chi_squared < 85.4  # the 0.999 quantile with 49 degrees of freedom


def test_same_generator_state_same_result():
    images = pixels(16, 3, 8, 8)
    first = random_crop_flip(images, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, random_crop_flip(images, generator=torch.Generator().manual_seed(4)))
    generator = torch.Generator().manual_seed(4)
    random_crop_flip(images, generator=generator)
    assert not torch.equal(first, random_crop_flip(images, generator=generator))


def test_global_generator_is_untouched():
    with isolated_rng(0):
        before = torch.get_rng_state()
        random_crop_flip(pixels(4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        assert torch.equal(torch.get_rng_state(), before)


def test_crops_are_the_same_with_and_without_flips():
    images = pixels(64, 3, 8, 8)
    both = random_crop_flip(images, generator=torch.Generator().manual_seed(4))
    crops = random_crop_flip(images, generator=torch.Generator().manual_seed(4), flip=False)
    flipped = (both != crops).flatten(1).any(1)
    assert 0 < flipped.sum() < 64
    assert torch.equal(torch.where(flipped.view(-1, 1, 1, 1), crops.flip(3), crops), both)


def test_result_shares_nothing_with_the_images():
    images = pixels(4, 1, 8, 8)
    original = images.clone()
    out = random_crop_flip(images, generator=torch.Generator().manual_seed(0), padding=0, flip=False)
    assert torch.equal(out, original)
    out.zero_()
    assert torch.equal(images, original)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 33), st.integers(1, 33)),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_normalised_images_padded_with_normalised_black_are_the_normalised_augmented_ones(sizes, padding, flip, seed):
    images, channels = pixels(*sizes), sizes[1]
    draw = torch.Generator().manual_seed(seed)
    mean, std = (torch.rand(channels, generator=draw).add(0.1).tolist() for _ in range(2))
    normalise = Normalise(mean, std)
    black = normalise(torch.zeros(1, channels, 1, 1, dtype=torch.uint8)).flatten()
    first = random_crop_flip(images, generator=torch.Generator().manual_seed(seed), padding=padding, flip=flip)
    then = random_crop_flip(
        normalise(images), generator=torch.Generator().manual_seed(seed), padding=padding, flip=flip, fill=black
    )
    assert torch.equal(then, normalise(first))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_each_channel_is_padded_with_its_own_value(dtype):
    images = pixels(6, 2, 5, 7, dtype=dtype)
    fill = torch.tensor([3.0, 200.0])
    corners = torch.tensor([(row, column) for row in (0, 2, 4) for column in (0, 4)])
    out = crop_flip(images, corners, None, padding=2, fill=fill)
    wanted = [one_by_one(images[:, [c]] - value, corners, None, 2) + value for c, value in enumerate((3, 200))]
    assert out.dtype == dtype and fill.tolist() == [3.0, 200.0]
    if dtype == torch.bfloat16:  # whose differences are rounded
        torch.testing.assert_close(out, torch.cat(wanted, 1), rtol=0.02, atol=1)
    else:
        assert torch.equal(out, torch.cat(wanted, 1))
    assert torch.equal(
        crop_flip(images, corners, None, padding=2, fill=torch.zeros(2)), crop_flip(images, corners, None, padding=2)
    )


def test_empty_batch():
    assert random_crop_flip(pixels(0, 3, 8, 8), generator=torch.Generator()).shape == (0, 3, 8, 8)


def test_what_cannot_work_is_named():
    generator = torch.Generator()
    with pytest.raises(SettingError, match=r"padding = -1: accepted is a whole number with 0 <= padding"):
        random_crop_flip(pixels(4, 1, 8, 8), generator=generator, padding=-1)
    with pytest.raises(SettingError, match=r"images of shape \(4, 8, 8\): accepted is \(B, C, H, W\)"):
        random_crop_flip(pixels(4, 8, 8), generator=generator)
    with pytest.raises(SettingError, match=r"fill of shape \(1,\): accepted is \(3,\), one per channel"):
        random_crop_flip(pixels(4, 3, 8, 8), generator=generator, fill=torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_draws_and_computes_what_the_cpu_does_without_waiting():
    images = pixels(64, 3, 32, 32)
    wanted = random_crop_flip(images, generator=torch.Generator().manual_seed(4))
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = random_crop_flip(on_device, generator=torch.Generator().manual_seed(4))
        local = random_crop_flip(on_device, generator=torch.Generator("cuda").manual_seed(4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out.cpu(), wanted)
    assert local.shape == images.shape


@pytest.mark.parametrize(("side", "padding"), [(8, 1), (28, 4), (32, 4), (64, 4), (3, 0)])
def test_small_images_are_shifted_by_less(side, padding) -> None:
    images = pixels(6, 2, side, side)
    wanted = random_crop_flip(images, generator=torch.Generator().manual_seed(3), padding=padding)
    assert torch.equal(random_crop_flip(images, generator=torch.Generator().manual_seed(3)), wanted)
