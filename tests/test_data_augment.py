"""Laws of augmentation and normalisation: a batch is a pure function of (seed, epoch, positions)."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilolayer.data import (
    NO_AUGMENTATION,
    Augmentation,
    ColorJitter,
    Images,
    ResizedCrop,
    batch_at,
    draw_augmentation,
    epoch_order,
    measure_statistics,
)
from kilolayer.data.augmentation import augment_batch, cut_out, mirror, pad_and_crop
from kilolayer.errors import InputError

N = 37
EVERYTHING = Augmentation(2, True, 3, ResizedCrop((0.2, 0.9)), ColorJitter())


def some_images(n=N, channels=3, side=9):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(n) % 5)


IMAGES = some_images()
STATISTICS = measure_statistics(IMAGES)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, N), max_size=5), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6)
)
def test_slicing_does_not_matter(cuts, seed, epoch):
    whole = batch_at(IMAGES, STATISTICS, EVERYTHING, seed, epoch, range(N))
    edges = [0, *sorted(cuts), N]
    parts = [
        batch_at(IMAGES, STATISTICS, EVERYTHING, seed, epoch, range(start, end))
        for start, end in pairwise(edges)
    ]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])


def test_ranks_share_the_whole_batch():
    whole, _ = batch_at(IMAGES, STATISTICS, EVERYTHING, 0, 0, range(32))
    for rank in range(4):
        share, _ = batch_at(IMAGES, STATISTICS, EVERYTHING, 0, 0, torch.arange(rank, 32, 4))
        assert torch.equal(share, whole[rank::4])


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6), n=st.integers(1, 300))
def test_every_image_once_an_epoch(seed, epoch, n):
    assert torch.equal(epoch_order(seed, epoch, n).sort().values, torch.arange(n))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(seed, epoch, 100).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_golden():
    """These numbers are a promise: a run resumed with a later release goes on as it began."""
    assert epoch_order(0, 0, 8).tolist() == [2, 3, 6, 1, 4, 5, 0, 7]
    drawn = draw_augmentation(0, 0, 8, Augmentation())
    assert drawn.top.tolist() == [0, 4, 0, 6, 0, 6, 1, 2]
    assert drawn.flip.int().tolist() == [1, 0, 1, 0, 1, 1, 0, 0]


def test_global_randomness_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    first, _ = batch_at(IMAGES, STATISTICS, EVERYTHING, 5, 5, range(N))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    draw_augmentation.cache_clear()
    epoch_order.cache_clear()
    assert torch.equal(first, batch_at(IMAGES, STATISTICS, EVERYTHING, 5, 5, range(N))[0])


def test_no_augmentation_is_the_identity():
    x, labels = batch_at(IMAGES, STATISTICS, NO_AUGMENTATION, 0, 0, range(N))
    order = epoch_order(0, 0, N)
    assert torch.equal(x, STATISTICS.normalize(IMAGES.pixels[order]))
    assert torch.equal(labels, IMAGES.labels[order])


def test_central_crop_is_the_identity():
    x = torch.randn(5, 3, 8, 8)
    middle = torch.full((5,), 4)
    assert torch.equal(pad_and_crop(x, middle, middle, 4), x)


def test_crop_is_a_shift_with_zeros():
    x = torch.randn(2, 1, 6, 6)
    shifted = pad_and_crop(x, torch.tensor([0, 4]), torch.tensor([2, 2]), 2)
    assert torch.equal(shifted[0, :, 2:], x[0, :, :4])
    assert not shifted[0, :, :2].any()
    assert torch.equal(shifted[1, :, :4], x[1, :, 2:])


def test_flip_is_an_involution():
    x = torch.randn(6, 3, 5, 5)
    flip = torch.tensor([True, False] * 3)
    assert torch.equal(mirror(mirror(x, flip), flip), x)
    assert torch.equal(mirror(x, flip)[1], x[1])
    assert torch.equal(mirror(x, flip)[0], x[0].flip(-1))


def test_draws_are_uniform():
    drawn = draw_augmentation(0, 0, 20_000, Augmentation(pad=4))
    for corner in (drawn.top, drawn.left):
        counts = torch.bincount(corner, minlength=9)
        assert len(counts) == 9
        assert (counts - 20_000 / 9).abs().max() < 250
    assert abs(drawn.flip.float().mean() - 0.5) < 0.02


def test_crops_stay_when_flips_go():
    with_flips, without = (
        draw_augmentation(0, 3, 50, Augmentation()),
        draw_augmentation(0, 3, 50, Augmentation(flip=False)),
    )
    assert torch.equal(with_flips.top, without.top)
    assert torch.equal(with_flips.left, without.left)
    assert not without.flip.any()


def test_cutout_zeros_at_most_its_square():
    x = torch.ones(200, 2, 9, 9)
    drawn = draw_augmentation(0, 0, 200, Augmentation(cutout=4))
    gone = (cut_out(x, drawn.cutout_center, 4) == 0).sum((1, 2, 3)) / 2
    assert gone.max() == 16
    assert gone.min() >= 4  # a quarter is left at a corner
    assert torch.equal(cut_out(x, drawn.cutout_center, 0), x)


def test_augment_keeps_shape_and_type():
    x = torch.randn(N, 1, 7, 7)
    out = augment_batch(x, draw_augmentation(0, 0, N, EVERYTHING), EVERYTHING)
    assert out.shape == x.shape
    assert out.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3])
def test_per_pixel_mean_is_exact(channels):
    images = some_images(500, channels)
    statistics = measure_statistics(images, "per_pixel_mean")
    x = statistics.normalize(images.pixels).double()
    assert torch.equal(statistics.mean, images.pixels.double().mean(0).float())
    assert x.mean(0).abs().max() < 1e-6
    assert abs(x.square().mean() - 1) < 1e-6


def test_channel_statistics():
    images = some_images(500)
    statistics = measure_statistics(images, "channel")
    x = statistics.normalize(images.pixels).double()
    assert statistics.mean.shape == statistics.scale.shape == (3, 1, 1)
    assert x.mean((0, 2, 3)).abs().max() < 1e-6
    assert (x.square().mean((0, 2, 3)) - 1).abs().max() < 1e-6


def test_statistics_do_not_depend_on_order():
    images = some_images(600)
    backwards = images[torch.arange(599, -1, -1)]
    assert torch.equal(measure_statistics(images).mean, measure_statistics(backwards).mean)
    assert torch.equal(measure_statistics(images).scale, measure_statistics(backwards).scale)


def test_constant_images_are_only_centred():
    flat = Images(torch.full((4, 1, 3, 3), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    for kind in ("per_pixel_mean", "channel"):
        assert not measure_statistics(flat, kind).normalize(flat.pixels).any()


def test_unknown_normalization():
    with pytest.raises(InputError, match="normalization"):
        measure_statistics(IMAGES, "imagenet")
