"""Entry points for `torch.hub`: one per named network, with the arguments of `kilolayer.create_model`.

torch.hub.list("owner/kilolayer")
torch.hub.load("path/to/checkout", "preact_resnet110_cifar", source="local", num_classes=100)
"""

import sys as _sys
from functools import partial as _partial
from pathlib import Path as _Path

dependencies = ["torch"]

# torch.hub puts this folder on the path and takes it off again; the package lies one folder deeper.
_source = str(_Path(__file__).parent / "src")
_sys.path.insert(0, _source)
try:
    from kilolayer.networks import create_model as _create_model
    from kilolayer.networks import describe as _describe
    from kilolayer.networks import list_models as _list_models
finally:
    _sys.path.remove(_source)


def _entry(name):
    """`create_model` for one name, with its sizes as the text that `torch.hub.help` prints."""
    network = _describe(name)
    entry = _partial(_create_model, name)
    entry.__doc__ = (
        f"{name}: {network.depth} layers, {network.parameters:,} parameters, "
        f"{network.multiply_adds:,} multiply-adds at {network.image_size} pixels.\n\n{_create_model.__doc__}"
    )
    return entry


globals().update({_name: _entry(_name) for _name in _list_models()})
