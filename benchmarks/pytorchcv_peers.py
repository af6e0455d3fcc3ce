"""pytorchcv's pre-activation networks from their own module, for `benchmarks/targets.py`.

The package's `model_provider` imports torchvision, which PyTorch's build for CPUs refuses; these do without.
"""

from pytorchcv.models.preresnet_cifar import (
    preresnet110_cifar10,
    preresnet164bn_cifar10,
    preresnet1001_cifar10,
)

__all__ = ["preresnet110_cifar10", "preresnet164bn_cifar10", "preresnet1001_cifar10"]
