"""Our networks with the stride where the packages put it: on the 3×3 convolution, not on the first 1×1.

Beside torchvision's and timm's ResNet-50 and pytorchcv's pre-activation bottlenecks these do exactly the same
work, so that the bench finds the same parameters, multiply-adds and, with equal weights, the same loss. For
`kilolayer bench benchmarks/same_work.py:preact_resnet164@fast --against pytorchcv:preresnet164bn_cifar10`.
"""

from kilolayer.networks import ResidualNetwork, build, describe


def _on_3x3(name: str) -> ResidualNetwork:
    return build(describe(name, branch={"stride_on": "3x3"}))


def preact_resnet164() -> ResidualNetwork:
    return _on_3x3("preact_resnet164_cifar")


def preact_resnet1001() -> ResidualNetwork:
    return _on_3x3("preact_resnet1001_cifar")


def resnet50() -> ResidualNetwork:
    return _on_3x3("resnet50")


def preact_resnet50() -> ResidualNetwork:
    return _on_3x3("preact_resnet50")
