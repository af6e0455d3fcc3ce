"""A normaliser of your own: GroupNorm in BN's place, which works with one image a batch."""

from dataclasses import dataclass

from torch import nn

from kilolayer.units import RELU, Activation, Arrangement, CustomLayer, Op


class Normalisation(nn.GroupNorm):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels)


@dataclass(frozen=True)
class GroupNorm(Activation):
    groups: int = 8
    normalises = True  # the stem has it too

    def layer(self, channels: int) -> Op:
        return CustomLayer(Normalisation, channels, self.groups)


PREACT = Arrangement(before=(GroupNorm(), RELU), between=(GroupNorm(), RELU))
