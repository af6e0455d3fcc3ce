"""Units that kernels compute whole, with widths and shapes (images, height, width) that try their edges."""

from kilolayer.units import BASIC, BOTTLENECK, ONE_LAYER

CASES = {
    "basic 16, 32×32": (BASIC, 16, (2, 32, 32)),
    "basic 32, 16×16": (BASIC, 32, (3, 16, 16)),
    "basic 64, 8×8": (BASIC, 64, (5, 8, 8)),
    "basic 48, 28×28": (BASIC, 48, (1, 28, 28)),
    "basic 32, 7×7": (BASIC, 32, (3, 7, 7)),
    "basic 16, 5×9": (BASIC, 16, (3, 5, 9)),
    "basic 16, 1×1": (BASIC, 16, (7, 1, 1)),
    "one layer 16, 8×3": (ONE_LAYER, 16, (2, 8, 3)),
    "bottleneck 64, 8×8": (BOTTLENECK, 64, (3, 8, 8)),
    "bottleneck 128, 14×14": (BOTTLENECK, 128, (2, 14, 14)),
    "bottleneck 192, 5×9": (BOTTLENECK, 192, (1, 5, 9)),
    "bottleneck 256, 7×7": (BOTTLENECK, 256, (3, 7, 7)),
}
