"""Descriptions of data are checked when made, survive JSON, and need no torch."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from kilolayer.data import Augmentation, Data, default_augmentation
from kilolayer.errors import InputError


def test_survives_json():
    data = Data("cifar10", folder="somewhere", image_size=48, validation=5000, split_seed=3, subset=100)
    assert Data(**json.loads(json.dumps(asdict(data)))) == data


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("source", "a\0b"),
        ("folder", ""),
        ("image_size", 0),
        ("image_size", 5000),
        ("validation", -1),
        ("validation", True),
        ("validation", 0.1),
        ("split_seed", -1),
        ("subset", 0),
    ],
)
def test_refuses_by_name(field, value):
    with pytest.raises(InputError, match=rf"^{WORDS.get(field, field)}: ") as error:
        Data(**{field: value})
    assert "\n" not in str(error.value)


WORDS = {"source": "data"}
"""As the command line calls a field, where it is not the field's name."""


@pytest.mark.parametrize("wrong", [{"pad": -1}, {"cutout": -1}, {"pad": 2.5}])
def test_augmentation_refuses(wrong):
    with pytest.raises(InputError, match="augmentation"):
        Augmentation(**wrong)


def test_digits_are_not_mirrored():
    assert not default_augmentation(Data()).flip
    assert default_augmentation(Data("cifar10")) == Augmentation(pad=4, flip=True)


def test_needs_no_torch():
    code = (
        "import sys; from kilolayer.data import Data, Augmentation; Data(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_what_they_say():
    import kilolayer.data as data

    for name in data.__all__:
        assert getattr(data, name) is not None
    assert callable(data.load)
    with pytest.raises(AttributeError, match="nothing"):
        _ = data.nothing
