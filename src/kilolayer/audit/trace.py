"""Traces one pass of a model, operator by operator; its classes and their names do not matter."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from kilolayer.errors import InputError

USUAL_SIDES = (32, 224, 64, 28, 299)


@dataclass(frozen=True)
class Trace:
    """The operators of one pass on an image of (1, channels, side, side).

    Every node's `meta["shape"]` is the shape of its output. `constants` are the tensors that existed before
    the pass, by node, and `parameters` the names of the trainable ones, by `id`.
    """

    graph: fx.Graph
    constants: dict[fx.Node, Tensor]
    parameters: dict[int, str]
    channels: int
    side: int


def trace_model(model: nn.Module, side: int | None = None) -> Trace:
    """Traces a copy of `model` in float32 on the CPU, with in-place writes functionalised.

    BN uses its running statistics. Modules without buffers are in training mode, so that dropout shows.

    Args:
        model: any module that takes images.
        side: pixels a side of the image; by default the usual sizes are tried in turn.

    Raises:
        InputError: no image fits; the message quotes the model's own error.
    """
    model = _copy_for_tracing(model)
    channels = _input_channels(model)
    error_text = ""
    for image_side in (side,) if side else USUAL_SIDES:
        for dropout in (True, False):
            _set_modes(model, dropout=dropout)
            try:
                recorded = _record(
                    model, torch.randn(1, channels, image_side, image_side, generator=_new_generator())
                )
            except Exception as error:  # a foreign model may raise anything
                error_text = error_text or f"{type(error).__name__}: {error}".partition("\n")[0]
                continue
            parameter_names = {id(tensor): name for name, tensor in model.named_parameters()}
            return Trace(recorded.graph, recorded.constants, parameter_names, channels, image_side)
    sizes = side or ", ".join(map(str, USUAL_SIDES))
    raise InputError(f"the model takes no image of {channels} channels and side {sizes}: {error_text}")


def _new_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _copy_for_tracing(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().float()  # _orig_mod: torch.compile's
    except Exception as error:
        words = str(error).partition("\n")[0]
        raise InputError(f"the model cannot be copied to the CPU: {words}") from None


def _input_channels(model: nn.Module) -> int:
    kernels = (tensor for tensor in model.parameters() if tensor.ndim == 4)
    channels = [kernel.shape[1] for kernel in kernels]
    # The first convolution declared need not be the first that runs; images have few channels.
    few = [count for count in channels if count <= 4]
    return channels[0] if channels and (channels[0] <= 4 or not few) else (3 if not few else max(few))


def _set_modes(model: nn.Module, *, dropout: bool) -> None:
    for module in model.modules():
        module.training = dropout and not list(module.buffers(recurse=False))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Records every operator below autograd, with its input and output tensors."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[fx.Node, Tensor] = {}
        self._nodes = WeakTensorKeyDictionary()
        self._assign_node(image, self.graph.placeholder("image"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = fx.node.map_aggregate((args, kwargs or {}), self._node_or_value)
        call = self.graph.call_function(func, *arguments)
        output = func(*args, **(kwargs or {}))
        self._assign_node(output, call)
        return output

    def _node_or_value(self, value: Any) -> Any:
        return self.node(value) if isinstance(value, Tensor) else value

    def node(self, tensor: Tensor) -> fx.Node:
        if tensor not in self._nodes:
            constant = self.graph.create_node("get_attr", f"constant{len(self.constants)}")
            self.constants[constant] = tensor
            self._assign_node(tensor, constant)
        fx_node: fx.Node = self._nodes[tensor]
        return fx_node

    def _assign_node(self, output: Any, fx_node: fx.Node) -> None:
        if isinstance(output, Tensor):
            fx_node.meta["shape"] = tuple(output.shape)
            self._nodes[output] = fx_node
        elif isinstance(output, (tuple, list)):
            for i, unit in enumerate(output):
                if isinstance(unit, Tensor):
                    self._assign_node(unit, self.graph.call_function(operator.getitem, (fx_node, i)))


def _record(model: nn.Module, image: Tensor) -> _Recorder:
    def once(x: Tensor) -> Tensor:
        return _first_tensor(model(x))

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recorder = _Recorder(image)
        with recorder:
            output = functionalize(once)(image)
        recorder.graph.output(recorder.node(output))
    return recorder


def _first_tensor(output: Any) -> Tensor:
    """The first tensor in a model's output, which is taken for the logits."""
    if isinstance(output, Tensor):
        return output
    inside = output.values() if isinstance(output, dict) else output
    return next(_first_tensor(unit) for unit in inside)
