"""A residual network as a PyTorch module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.networks.description import Network
from kilolayer.networks.progressive_depth import num_active_units
from kilolayer.networks.recompute import Segment, Segments
from kilolayer.networks.stage import ResidualStage
from kilolayer.units.field_checks import check_fits
from kilolayer.units.layer_modules import sequence
from kilolayer.units.modules import GatedUnit, build_unit


class ResidualNetwork(nn.Module):
    """A network, built from its description: stem, stages of residual units, final activation, classifier.

    (N, in_chans, H, W) → (N, num_classes). The keys of the state dict have the equation's letters:

        stem.conv1.weight                      the first convolution; its BN is stem.bn1
        stage2.0.F.conv1.weight                the first convolution of F in the first unit of stage 2
        stage2.0.h.conv1.weight                the unit's projection shortcut
        stage2.0.p.bn1.weight                  the activation that its two paths share
        stage2.0.g.conv1.weight                its gate W_g, b_g
        stage2.0.f.bn1.weight                  its BN after the addition
        final.bn1.weight                       the activation after a pre-activation network's last addition
        classifier.weight, classifier.bias

    The layers of one kind are numbered. Convolutions have He's normal initialisation, b_g has its unit's
    `bias`, and the classifier has PyTorch's default with bias 0.

    >>> from kilolayer.networks import cifar
    >>> model = ResidualNetwork(cifar(20))
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, description: Network) -> None:
        super().__init__()
        self.description = description
        self.stem = sequence(description.stem_ops)
        self.stage_names = [f"stage{number}" for number, _ in enumerate(description.stages, 1)]
        layouts = iter(description.units())
        for name, stage in zip(self.stage_names, description.stages, strict=True):
            built = (build_unit(next(layouts).layout) for _ in range(stage.units))
            self.add_module(name, ResidualStage(*built))
        self.final = sequence(description.final_ops)
        self.classifier: nn.Module = nn.Linear(description.channels, description.num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode=self.description.initialisation, nonlinearity="relu"
                )
            elif isinstance(module, GatedUnit):
                bias = list(module.g.parameters())[-1]
                nn.init.constant_(bias, module.gate_bias)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def num_classes(self) -> int:
        """Number of the classifier's outputs; 0 without a classifier."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each stage: `module`, `num_chs` (channels) and `reduction` (input side over output side)."""
        info, reduction = [], self.description.stem.stride * (2 if self.description.stem.pool else 1)
        for name, stage in zip(self.stage_names, self.description.stages, strict=True):
            reduction *= stage.stride
            channels = self.description.unit.branch.out_channels(stage.width)
            info.append({"module": name, "num_chs": channels, "reduction": reduction})
        return info

    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, (N, C_i, H_i, W_i); the last one after the final activation."""
        outputs: list[Tensor] = []
        x = self.stem(x)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript cannot look a module up by its name, but it can unroll this loop.
            for name, stage in self.named_children():
                if name in self.stage_names:
                    x = stage(x)
                    outputs.append(x)
        else:
            for name in self.stage_names:
                x = self.get_submodule(name)(x)
                outputs.append(x)
        outputs[-1] = self.final(x)
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, channels, H', W')."""
        return self.stage_outputs(x)[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Global average pooling and, unless `pre_logits`, the classifier."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The classifier, as in timm."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one for `num_classes`, also in `description`; 0 removes it."""
        if num_classes == 0:
            self.classifier = nn.Identity()
            return
        self.description = replace(self.description, num_classes=num_classes)
        self.classifier = nn.Linear(self.description.channels, num_classes).to(next(self.parameters()))
        nn.init.zeros_(self.classifier.bias)

    def _stages(self) -> dict[str, ResidualStage]:
        """The stages by name, without those that were replaced by another module."""
        stages = {name: self.get_submodule(name) for name in self.stage_names}
        return {name: stage for name, stage in stages.items() if isinstance(stage, ResidualStage)}

    @property
    def num_active_units(self) -> dict[str, int]:
        """The number of active units of every stage in training (`kilolayer.networks.progressive_depth`)."""
        return {name: len(stage) - stage.num_inactive for name, stage in self._stages().items()}

    def set_active_units(self, share: float) -> None:
        """Make this share of every stage's units active in training."""
        for name, described in zip(self.stage_names, self.description.stages, strict=True):
            if isinstance(stage := self.get_submodule(name), ResidualStage):
                stage.num_inactive = described.units - num_active_units(described, share)

    def zero_init_inactive(self) -> None:
        """Set F of every inactive unit to 0, by the weights of its last layer."""
        for stage in self._stages().values():
            for unit in list(stage)[len(stage) - stage.num_inactive :]:
                *_, last = unit.get_submodule("F").children()
                nn.init.zeros_(last.get_parameter("weight"))

    @property
    def segments(self) -> dict[str, Segments]:
        """The segments of every stage that is recomputed in the backward pass."""
        return {name: stage.segments for name, stage in self._stages().items() if stage.segments}

    @segments.setter
    def segments(self, segments: dict[str, Segments]) -> None:
        for name, stage in self._stages().items():
            stage.segments = segments.get(name, ())

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the backward pass recomputes any unit."""
        return any(segment.recomputed for stage in self.segments.values() for segment in stage)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every unit in the backward pass, which saves memory and takes about a third more time.

        Every unit becomes a segment of its own; the memory planner in `kilolayer.training` finds better ones.
        """
        stages = self._stages().items()
        self.segments = {name: (Segment(1),) * len(stage) for name, stage in stages} if enable else {}

    __jit_unused_properties__ = (
        "num_classes",
        "feature_info",
        "num_active_units",
        "segments",
        "grad_checkpointing",
    )


def build(description: Network) -> ResidualNetwork:
    """The module of `description`, initialised from PyTorch's global random state.

    >>> from kilolayer.networks import cifar
    >>> build(cifar(8)).num_classes
    10

    Raises:
        InputError: the network does not fit into half of the available memory.
    """
    check_fits("the network", description.parameters, description.num_layers)
    return ResidualNetwork(description)
