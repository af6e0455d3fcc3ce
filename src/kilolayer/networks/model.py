"""A residual network as a PyTorch module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kilolayer.networks.description import Network
from kilolayer.networks.growth import working
from kilolayer.networks.recompute import Segment, Segments, through
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
            self.add_module(name, nn.Sequential(*built))
        self.final = units.sequence(description.final_ops)
        self.classifier: nn.Module = nn.Linear(description.channels, description.num_classes)
        self.segments: dict[str, Segments] = {}
        self.let_work(1.0)
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

    def stage_outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The output of every stage in turn; the last one behind the final activation."""
        x = self.stem(x)
        for name in self.stage_names:
            chain = self._at_work(name) if self.training else list(self.get_submodule(name).children())
            x = through(chain, x, self.segments.get(name, ()) if self.training else ())
            yield self.final(x) if name == self.stage_names[-1] else x

    def _at_work(self, name: str) -> list[nn.Module]:
        """The units of a stage in training: those that rest are identities."""
        chain, count = list(self.get_submodule(name).children()), self.working[name]
        return [*chain[:count], *[nn.Identity()] * (len(chain) - count)]

    def let_work(self, share: float) -> None:
        """From now on this share of every stage's units works in training (`kilolayer.networks.growth`)."""
        stages = zip(self.stage_names, self.description.stages, strict=True)
        self.working = {name: working(stage, share) for name, stage in stages}

    def silence_resting(self) -> None:
        """Sets F of every unit that rests to 0, by the weights of its last layer."""
        for name, count in self.working.items():
            for unit in list(self.get_submodule(name).children())[count:]:
                *_, last = unit.get_submodule("F").children()
                nn.init.zeros_(last.get_parameter("weight"))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, channels, H', W')."""
        *_, features = self.stage_outputs(x)
        return features

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

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the backward pass computes units again."""
        return any(segment.recomputed for stage in self.segments.values() for segment in stage)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every unit in the backward pass: less memory for about a third more time.

        `segments` holds how every stage is divided for that; `kilolayer.training.memory` finds the best.
        """
        stages = zip(self.stage_names, self.description.stages, strict=True)
        self.segments = {name: (Segment(1),) * stage.units for name, stage in stages} if enable else {}


def build(description: Network) -> ResidualNetwork:
    """The module of a description, freshly initialised from PyTorch's global random state."""
    return ResidualNetwork(description)
