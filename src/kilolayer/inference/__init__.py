"""Trained networks made ready to be used: BN folded into convolutions, layers joined, other engines."""

from kilolayer.inference.folded import fold

__all__ = ["fold"]
