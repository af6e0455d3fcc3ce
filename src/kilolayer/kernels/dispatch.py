"""When a kernel can run, and what every call of a kernel needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from kilolayer.kernels.backend import Backend, runs_on
from kilolayer.kernels.native_library import BatchStruct, NormStruct
from kilolayer.units.batch_norm_module import COUNTER


def is_transformed() -> bool:
    """Whether torch.compile or torch.func runs the layers, whose tensors then have no addresses."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def can_run(backend: Backend, x: Tensor, layers: Iterable[nn.Module] = (), stride: int = 1) -> bool:
    """Whether a kernel can compute `layers` on `x`: in bf16 autocast, all layers unmodified and in training.

    After `stride` more than one value per channel must remain, or BN has no variance: PyTorch's layers refuse
    that.
    """
    device = x.device.type
    return (
        x.dtype is torch.bfloat16
        and runs_on(backend, x.device)
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) is torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
        and _pixels(x, stride) > 1
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and all(map(_is_unmodified_in_training, layers))
    )


def fits_kernel(x: Tensor, channels: int, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> bool:
    """Whether a kernel can read these tensors by their addresses.

    `x` must have `channels` channels. The tensors must have these shapes, be fp32, lie on the device of x and
    be dense, as their gradients will be.
    """
    device = x.device
    return (
        x.shape[1] == channels
        and [tensor.shape for tensor in tensors] == shapes
        and all(
            tensor.dtype is torch.float32
            and tensor.device == device
            and (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last))
            for tensor in tensors
        )
    )


def _pixels(x: Tensor, stride: int) -> int:
    images, _, height, width = x.shape
    return images * -(-height // stride) * -(-width // stride)


def _is_unmodified_in_training(module: nn.Module) -> bool:
    """Whether a module is in training, has no hooks, and, if a BN, updates its running mean by a momentum."""
    attributes = vars(module)
    return (
        module.training
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        and attributes.get("momentum", 0) is not None
        and attributes.get("track_running_stats", True)
        and "forward" not in attributes
    )


def count_batch(norms: Iterable[nn.BatchNorm2d]) -> None:
    """Increments the batch counters of the BNs, as PyTorch does, for cumulative means computed later."""
    counters = [counter for norm in norms if (counter := norm._buffers[COUNTER]) is not None]
    if counters:
        torch._foreach_add_(counters, 1)


def channel_sums_of(x: Tensor) -> Tensor | None:
    """Σ x and Σ x² of every channel if an earlier kernel attached them to `x` and x has not changed since."""
    sums, version = getattr(x, "channel_sums", (None, -1))
    return sums if sums is not None and version == x._version else None


def attach_channel_sums(y: Tensor, sums: Tensor) -> None:
    """Attaches Σ y and Σ y² to `y` for the BN that reads it.

    A tensor of inference mode has no version counter, so it could not be checked for changes; it gets none.
    """
    if not y.is_inference():
        y.channel_sums = (sums, y._version)  # type: ignore[attr-defined]


def empty_map_like(x: Tensor, channels: int) -> Tensor:
    """An uninitialised feature map with the size of `x` and `channels` channels, channels last."""
    images, _, height, width = x.shape
    return torch.empty((images, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)


def subsample(stride: int, x: Tensor) -> Tensor:
    """The pixels of `x` that a 1×1 convolution with this stride reads, channels last."""
    return x if stride == 1 else x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)


def scatter_strided(stride: int, dx: Tensor, size: torch.Size) -> Tensor:
    """The gradient of a tensor of `size` from the gradient of its subsampled pixels; zero elsewhere."""
    if stride == 1:
        return dx
    full = torch.empty(size, dtype=dx.dtype, memory_format=torch.channels_last).zero_()
    full[:, :, ::stride, ::stride] = dx
    return full


def batch_struct(x: Tensor) -> BatchStruct:
    """The size of `x` and the number of threads, for the library."""
    images, _, height, width = x.shape
    return BatchStruct(images, height, width, torch.get_num_threads())


def norm_structs(
    norms: Iterable[nn.BatchNorm2d],
    statistics: Tensor,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    update_running: bool,
) -> Iterator[NormStruct]:
    """The BNs in the form that the library reads.

    `statistics` receives the mean and 1/√(var + ε) of every BN. `parameters` and, in the backward pass,
    `gradients` hold weight and bias of every BN in turn. With `update_running` the library updates the
    running averages, unless the momentum is 0.
    """
    address, size = statistics.data_ptr(), statistics.element_size()
    for i, norm in enumerate(norms):
        running = update_running and norm.momentum
        yield NormStruct(
            parameters[2 * i].data_ptr(),
            parameters[2 * i + 1].data_ptr(),
            norm.running_mean.data_ptr() if running else None,  # type: ignore[union-attr]
            norm.running_var.data_ptr() if running else None,  # type: ignore[union-attr]
            address,
            address + size * norm.num_features,
            gradients[2 * i].data_ptr() if gradients else None,
            gradients[2 * i + 1].data_ptr() if gradients else None,
            norm.momentum or 0.0,
            norm.eps,
        )
        address += 2 * size * norm.num_features
