import pytest
import torch
import torchvision.transforms.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray._checks import SettingError
from ht_ray.mechanisms.rng import isolated_rng
from ht_ray.vision.augment import crop_flip, random_crop_flip


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


def test_empty_batch():
    assert random_crop_flip(pixels(0, 3, 8, 8), generator=torch.Generator()).shape == (0, 3, 8, 8)


def test_what_cannot_work_is_named():
    generator = torch.Generator()
    with pytest.raises(SettingError, match=r"padding = -1: accepted is a whole number with 0 <= padding"):
        random_crop_flip(pixels(4, 1, 8, 8), generator=generator, padding=-1)
    with pytest.raises(SettingError, match=r"images of shape \(4, 8, 8\): accepted is \(B, C, H, W\)"):
        random_crop_flip(pixels(4, 8, 8), generator=generator)


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
