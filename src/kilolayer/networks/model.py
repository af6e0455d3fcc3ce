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
from kilolayer.units import modules as units
from kilolayer.units.modules import GatedUnit


class ResidualNetwork(nn.Module):
    """A network built from its description: stem, stages of residual units, final activation, classifier.

    (N, in_chans, H, W) → (N, num_classes). The state dict speaks the equation's letters:

        stem.conv1.weight                      the first convolution; its BN is stem.bn1
        stage2.0.F.conv1.weight                F's first convolution in the first unit of stage 2
        stage2.0.h.conv1.weight                its projection shortcut, where it has one
        stage2.0.p.bn1.weight                  the activation its two paths share, where they do
        stage2.0.g.conv1.weight                its gate W_g, b_g
        stage2.0.f.bn1.weight                  its BN after the addition
        final.bn1.weight                       the activation after a pre-activation network's last addition
        classifier.weight, classifier.bias

    Layers are numbered by their place among their kind. Convolutions start from He's normal
    initialisation, b_g from its unit's `bias`, the classifier from PyTorch's default with bias 0.
    """

    def __init__(self, description: Network) -> None:
        super().__init__()
        self.description = description
        self.stem = units.sequence(description.stem_ops)
        self.stage_names = [f"stage{number}" for number, _ in enumerate(description.stages, 1)]
        layouts = iter(description.units())
        for name, stage in zip(self.stage_names, description.stages, strict=True):
            built = (units.build_unit(next(layouts).layout) for _ in range(stage.units))
            self.add_module(name, ResidualStage(*built))
        self.final = units.sequence(description.final_ops)
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
        """Outputs of the classifier; 0 where it is removed."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of every stage: `module`, `num_chs` (channels) and `reduction` (input side over output side)."""
        info, reduction = [], self.description.stem.stride * (2 if self.description.stem.pool else 1)
        for name, stage in zip(self.stage_names, self.description.stages, strict=True):
            reduction *= stage.stride
            channels = self.description.unit.branch.out_channels(stage.width)
            info.append({"module": name, "num_chs": channels, "reduction": reduction})
        return info

    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """The output of every stage; the last one behind the final activation."""
        outputs: list[Tensor] = []
        x = self.stem(x)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # A script has no modules by their names, but for this loop over all of them.
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
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier for `num_classes`, with the description changed alike; 0 removes it."""
        if num_classes == 0:
            self.classifier = nn.Identity()
            return
        self.description = replace(self.description, num_classes=num_classes)
        self.classifier = nn.Linear(self.description.channels, num_classes).to(next(self.parameters()))
        nn.init.zeros_(self.classifier.bias)

    def _stages(self) -> dict[str, ResidualStage]:
        """By their names; without those that something else has taken the place of."""
        stages = {name: self.get_submodule(name) for name in self.stage_names}
        return {name: stage for name, stage in stages.items() if isinstance(stage, ResidualStage)}

    @property
    def num_active_units(self) -> dict[str, int]:
        """How many units of every stage are at work in training."""
        return {name: len(stage) - stage.num_inactive for name, stage in self._stages().items()}

    def set_active_units(self, share: float) -> None:
        """From now on this share of every stage's units works in training (`kilolayer.networks.progressive_depth`)."""
        for name, described in zip(self.stage_names, self.description.stages, strict=True):
            if isinstance(stage := self.get_submodule(name), ResidualStage):
                stage.num_inactive = described.units - num_active_units(described, share)

    def zero_init_inactive(self) -> None:
        """Sets F of every unit that rests to 0, by the weights of its last layer."""
        for stage in self._stages().values():
            for unit in list(stage)[len(stage) - stage.num_inactive :]:
                *_, last = unit.get_submodule("F").children()
                nn.init.zeros_(last.get_parameter("weight"))

    @property
    def segments(self) -> dict[str, Segments]:
        """How the stages that are computed again in the backward pass are divided for that."""
        return {name: stage.segments for name, stage in self._stages().items() if stage.segments}

    @segments.setter
    def segments(self, segments: dict[str, Segments]) -> None:
        for name, stage in self._stages().items():
            stage.segments = segments.get(name, ())

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the backward pass computes units again."""
        return any(segment.recomputed for stage in self.segments.values() for segment in stage)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every unit in the backward pass: less memory for about a third more time.

        `segments` holds how every stage is divided for that; `kilolayer.training.memory_plan` finds the best.
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
    """The module of a description, freshly initialised from PyTorch's global random state."""
    return ResidualNetwork(description)
