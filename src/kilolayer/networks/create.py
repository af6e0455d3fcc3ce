"""Networks by name, as feature extractors, and converted between ResNeXt's forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.networks.model import ResidualNetwork, build
from kilolayer.networks.names import describe
from kilolayer.units.branch import Aggregated
from kilolayer.units.resnext_forms import convert_unit_form as convert_unit


class FeatureNetwork(nn.Module):
    """The feature maps of some stages, for detection and segmentation.

    (N, in_chans, H, W) → a list of (N, C_i, H_i, W_i), one for each stage in `out_indices` (default: all).

    >>> import torch
    >>> backbone = create_model("resnet20_cifar", features_only=True, out_indices=(1, 2))
    >>> [feature.shape for feature in backbone(torch.zeros(1, 3, 32, 32))]
    [torch.Size([1, 32, 16, 16]), torch.Size([1, 64, 8, 8])]

    Raises:
        InputError: an index is not that of a stage.
    """

    def __init__(self, network: ResidualNetwork, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        count = len(network.stage_names)
        self.out_indices = tuple(range(count)) if out_indices is None else tuple(out_indices)
        for index in self.out_indices:
            if not 0 <= index < count:
                raise InputError(
                    f"out_indices holds {index}; allowed: 0 to {count - 1}, the numbers of the stages"
                )
        network.classifier = nn.Identity()
        self.network = network

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each output: `module`, `num_chs` (channels) and `reduction` (input side over output side)."""
        return [self.network.feature_info[index] for index in self.out_indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As `ResidualNetwork.set_grad_checkpointing`."""
        self.network.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = self.network.stage_outputs(x)
        return [outputs[index] for index in self.out_indices]

    __jit_unused_properties__ = ("feature_info",)


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **choices: Any,
) -> ResidualNetwork | FeatureNetwork:
    """The network called `name`, freshly initialised, with timm's interface.

    `num_classes` is 10 by default in the CIFAR family and 1000 in ImageNet's; 0 leaves the classifier out.
    `features_only` returns a `FeatureNetwork` with the stages in `out_indices`. `choices` are passed on to
    `describe`: `unit=`, `branch=`, `image_size=`, `initialisation=`.

    >>> model = create_model("preact_resnet20_cifar", num_classes=100)
    >>> sum(parameter.numel() for parameter in model.parameters())
    275572

    Raises:
        InputError: the name is unknown, a choice is impossible, or `pretrained` is true (no weights are
            published yet).
    """
    if pretrained:
        hint = f"train it: kilolayer train --model {name}"
        raise InputError(f"no pretrained weights of {name} are published; {hint}")
    if num_classes:
        choices["num_classes"] = num_classes
    network = build(describe(name, in_chans=in_chans, **choices))
    if num_classes == 0:
        network.reset_classifier(0)
    return FeatureNetwork(network, out_indices) if features_only else network


def convert_form(model: ResidualNetwork, form: str) -> ResidualNetwork:
    """The ResNeXt `model` in another of its three equivalent forms, with the same weights (PX, Fig. 3).

    `form` is "split", "concatenated" or "grouped".

    >>> from kilolayer.networks import build, cifar
    >>> from kilolayer.units import Aggregated, Unit
    >>> model = build(cifar(11, Unit(Aggregated(2, 16))))
    >>> convert_form(model, "split").description.unit.branch.form
    'split'

    Raises:
        InputError: the units are not aggregated.
    """
    description = model.description
    if not isinstance(description.unit.branch, Aggregated):
        raise InputError(f"only aggregated (ResNeXt) units have forms; this is {description.unit.branch}")
    branch = replace(description.unit.branch, form=form)  # type: ignore[arg-type]
    converted = build(replace(description, unit=replace(description.unit, branch=branch)))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("stage")}
    for old, new in zip(description.units(), converted.description.units(), strict=True):
        part = convert_unit(model.get_submodule(old.name).state_dict(), old.layout, new.layout)
        state |= {f"{new.name}.{key}": value for key, value in part.items()}
    converted.load_state_dict(state)
    return converted.to(next(model.parameters())).train(model.training)
