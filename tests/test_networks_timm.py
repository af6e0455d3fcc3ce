"""timm's entry points, against a stand-in for timm, whose torchvision needs another build of PyTorch."""

import importlib
import sys
import types

import pytest

from kilolayer.errors import InputError
from kilolayer.networks import list_models

HOME = "kilolayer.networks.with_timm"


@pytest.fixture
def registered(monkeypatch):
    """What the stand-in's `register_model` was given, by name; it knows resnet50 already."""
    entries = {}

    def register_model(builder):
        # As timm does: the builder's module lists its entries.
        sys.modules[builder.__module__].__all__.append(builder.__name__)
        entries[builder.__name__] = builder
        return builder

    models = types.ModuleType("timm.models")
    models.register_model, models.is_model = register_model, lambda name: name == "resnet50"
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.models", models)
    monkeypatch.delitem(sys.modules, HOME, raising=False)
    importlib.import_module(HOME)
    yield entries
    sys.modules.pop(HOME, None)


def test_every_name_that_timm_lacks_is_registered(registered):
    assert set(registered) == set(list_models()) - {"resnet50"}


def test_an_entry_takes_what_timm_passes(registered):
    model = registered["preact_resnet20_cifar"](pretrained=False, pretrained_cfg=None, num_classes=7)
    assert model.num_classes == 7


def test_without_timm_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models", None)
    monkeypatch.delitem(sys.modules, HOME, raising=False)
    with pytest.raises(InputError, match="pip install timm"):
        importlib.import_module(HOME)
