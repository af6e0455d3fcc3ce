"""Importing this module registers every named network with timm.

    import kilolayer.networks.with_timm, timm
    timm.create_model("preact_resnet110_cifar", num_classes=100)

A name that timm has already, such as resnet50, stays timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kilolayer.errors import InputError
from kilolayer.networks import create_model, list_models

try:
    from timm.models import is_model, register_model
except (
    ImportError,
    RuntimeError,
) as error:  # timm needs torchvision, which raises RuntimeError beside a CPU build
    raise InputError(
        f"kilolayer.networks.with_timm needs a working timm: pip install timm ({error})"
    ) from error

__all__: list[str] = []
"""The registered names; timm appends them."""


def _entry(name: str) -> Callable[..., Any]:
    def build(pretrained: bool = False, **options: Any) -> Any:
        # timm passes these to every builder; they concern pretrained weights, and there are none.
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(key, None)
        return create_model(name, pretrained, **options)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"kilolayer's {name}."
    return build


for _name in list_models():
    if not is_model(_name):
        globals()[_name] = register_model(_entry(_name))
