"""Laws of the resized crop and of colour jitter."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from kilolayer.data import (
    PHOTO_AUGMENTATION,
    Augmentation,
    ColorJitter,
    Images,
    ResizedCrop,
    batch_at,
    draw_augmentation,
    measure_statistics,
)
from kilolayer.data.augmentation import LUMA_WEIGHTS, crop_and_resize, jitter_colors
from kilolayer.errors import InputError
from kilolayer.values import from_json, to_json


def pictures(n: int = 6, channels: int = 3, side: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


def factor(contrast: float = 1, brightness: float = 1, saturation: float = 1, n: int = 6) -> torch.Tensor:
    return torch.tensor([[contrast, brightness, saturation]]).repeat(n, 1)


def test_golden() -> None:
    """These numbers are a promise: a run resumed with a later release goes on as it began."""
    drawn = draw_augmentation(0, 0, 2, PHOTO_AUGMENTATION)
    wanted_boxes = torch.tensor(BOXES)
    wanted_factors = torch.tensor(FACTORS)
    torch.testing.assert_close(drawn.crop_box, wanted_boxes, rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn.color_factors, wanted_factors, rtol=0, atol=1e-6)


BOXES = [[0.0322839, 0.1202523, 0.9078721, 0.7885991], [0.0120379, 0.0, 0.8289987, 1.0]]
FACTORS = [[1.0834249, 0.9399678, 1.0929396], [1.1080134, 1.1366857, 0.8021448]]


def test_crops_and_flips_stay_when_photographs_vary_too() -> None:
    plain, more = (
        draw_augmentation(3, 1, 50, Augmentation()),
        draw_augmentation(3, 1, 50, Augmentation(color_jitter=ColorJitter())),
    )
    assert torch.equal(plain.top, more.top)
    assert torch.equal(plain.flip, more.flip)
    assert plain.color_factors.shape == (50, 0)
    assert more.crop_box.shape == (50, 0)


def test_boxes_are_in_the_picture_and_of_the_area_and_ratio_that_are_asked_for() -> None:
    top, left, height, width = draw_augmentation(
        0, 0, 5000, Augmentation(resized_crop=ResizedCrop((0.1, 0.6)))
    ).crop_box.T
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert 0.1 - 1e-6 < area.min() < 0.11
    assert 0.59 < area.max() <= 0.6 + 1e-6
    assert 3 / 4 - 1e-5 < ratio.min() < 0.76
    assert abs(area.mean() - 0.35) < 0.01
    assert abs(ratio.log().mean()) < 0.01


def test_a_long_side_is_the_pictures() -> None:
    box = draw_augmentation(
        0, 0, 500, Augmentation(resized_crop=ResizedCrop((0.9, 1.0), (0.2, 5.0)))
    ).crop_box
    assert box[:, 2:].max() == 1
    assert (box[:, :2] + box[:, 2:]).max() <= 1 + 1e-6


def test_factors_are_in_their_range() -> None:
    found = draw_augmentation(0, 0, 5000, Augmentation(color_jitter=ColorJitter(0.4, 0.2, 0.0))).color_factors
    for column, spread in enumerate((0.4, 0.2, 0.0)):
        assert (found[:, column] - 1).abs().max() <= spread + 1e-6
        assert (found[:, column] - 1).abs().max() >= 0.99 * spread
        assert abs(found[:, column].mean() - 1) < 0.02


def test_a_ramp_is_enlarged_along_each_side() -> None:
    size = 16
    ramp = torch.arange(size).float()
    x = torch.stack([ramp[:, None].expand(size, size), ramp.expand(size, size)])[None].repeat(2, 1, 1, 1)
    box = torch.tensor([[0.25, 0.125, 0.5, 0.5], [0.5, 0.0, 0.25, 1.0]])
    out = crop_and_resize(x, box)
    for image, (top, left, height, width) in enumerate(box.tolist()):
        for channel, (start, length) in enumerate([(top, height), (left, width)]):
            wanted = (size * (start + length * (ramp + 0.5) / size) - 0.5).clamp(0, size - 1)
            line = out[image, channel, :, 3] if channel == 0 else out[image, channel, 3]
            torch.testing.assert_close(line, wanted, rtol=0, atol=1e-4)


def test_the_whole_picture_is_itself() -> None:
    x = torch.randn(3, 2, 9, 9)
    torch.testing.assert_close(crop_and_resize(x, torch.tensor([[0.0, 0, 1, 1]]).repeat(3, 1)), x)


def test_factors_of_one_change_nothing() -> None:
    pixels = pictures()
    torch.testing.assert_close(jitter_colors(pixels, factor()), pixels.float(), rtol=0, atol=1e-3)


def test_each_factor_does_what_its_name_says() -> None:
    pixels = pictures()
    x = pixels.float()
    weights = torch.tensor(LUMA_WEIGHTS)[None, :, None, None] / 1000
    grey = (x * weights).sum(1, keepdim=True)
    torch.testing.assert_close(jitter_colors(pixels, factor(brightness=0.5)), x / 2, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        jitter_colors(pixels, factor(brightness=2)), (2 * x).clamp(max=255), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        jitter_colors(pixels, factor(saturation=0)), grey.expand_as(x), rtol=0, atol=1e-3
    )
    mean = grey.mean((1, 2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(jitter_colors(pixels, factor(contrast=0)), mean, rtol=0, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_than_three_have_no_saturation(channels: int) -> None:
    pixels = pictures(channels=channels)
    torch.testing.assert_close(jitter_colors(pixels, factor(saturation=0)), pixels.float(), rtol=0, atol=1e-3)
    flat = jitter_colors(pixels, factor(contrast=0))
    torch.testing.assert_close(flat[:, :1].expand_as(flat), flat)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("side", [9, 33])
def test_a_picture_does_not_depend_on_its_batch(side: int, threads: int) -> None:
    images = Images(pictures(40, side=side), torch.zeros(40, dtype=torch.int64))
    statistics, before = measure_statistics(images), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole, _ = batch_at(images, statistics, PHOTO_AUGMENTATION, 7, 2, range(40))
        for each in range(40):
            alone, _ = batch_at(images, statistics, PHOTO_AUGMENTATION, 7, 2, range(each, each + 1))
            assert torch.equal(alone[0], whole[each])
    finally:
        torch.set_num_threads(before)


def test_epochs_and_seeds_vary_otherwise() -> None:
    seen = {
        draw_augmentation(seed, epoch, 3, PHOTO_AUGMENTATION).crop_box.numpy().tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(seen) == 4


def test_json_keeps_them_and_reads_what_older_releases_wrote() -> None:
    assert from_json(to_json(PHOTO_AUGMENTATION), Augmentation) == PHOTO_AUGMENTATION
    assert from_json(json.dumps({"pad": 4, "flip": True, "cutout": 0}), Augmentation) == Augmentation()


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        *(
            (ResizedCrop, {"area": area}, "resized_crop.area")
            for area in ((0, 1), (0.5, 0.2), (0.5, 1.1), 0.5)
        ),
        *((ResizedCrop, {"ratio": ratio}, "resized_crop.ratio") for ratio in ((0, 1), (2, 1), (1,), "1,2")),
        *((ResizedCrop, {"area": (math.nan, each)}, "resized_crop.area") for each in (1, math.nan, True)),
        *(
            (ColorJitter, {"saturation": each}, "color_jitter.saturation")
            for each in (-0.1, 1.1, math.nan, True)
        ),
    ],
)
def test_what_is_no_range_is_refused(kind: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        kind(**fields)
    assert "\n" not in str(refused.value)
