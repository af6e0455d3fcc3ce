"""torch.hub finds every named network, without a network connection."""

from pathlib import Path

import pytest
import torch

from kilolayer.networks import list_models

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub whose cache already holds this repository, as it lies on disk after a download."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "owner_kilolayer_main").symlink_to(ROOT)
    return {"github": "owner/kilolayer:main", "skip_validation": True, "trust_repo": True}


def test_hub_lists_the_names_and_nothing_else(cached):
    assert sorted(torch.hub.list(**cached)) == sorted(list_models())


def test_hub_loads_a_model_from_a_local_path():
    model = torch.hub.load(str(ROOT), "preact_resnet20_cifar", source="local", num_classes=7, in_chans=1)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 7)


def test_hub_helps_with_sizes(cached):
    text = torch.hub.help(model="resnet50", **cached)
    assert text.startswith(
        "resnet50: 50 layers, 25,557,032 parameters, 3,857,973,248 multiply-adds at 224 pixels."
    )
    assert "pretrained" in text
