"""Traces one pass of a model, operator by operator; its classes and their names do not matter."""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from kilolayer.errors import InputError
from kilolayer.system.message_text import error_line

USUAL_SIDES = (32, 224, 64, 28, 299, 256, 384, 512, 96, 16)
USUAL_CHANNELS = (3, 1, 4)
MOST_CHANNELS = 4
"""Images have few channels: a first kernel with more of them need not be the first that runs."""
SEQUENCE_STEPS = 8

# In "training" every module without buffers of its own is in training mode, so that dropout shows; in
# "evaluation" only those without submodules are, so that auxiliary heads are off; in "still" none is.
Mode = Literal["training", "evaluation", "still"]


@dataclass(frozen=True)
class Trace:
    """The operators of one pass.

    Every node's `meta["shape"]` is the shape of its output. `constants` are the tensors that existed before
    the pass, by node; `parameters` the names of the trainable ones and `tensors` of all of the module's, by
    `id`. `outputs` are the names of the output's tensors, in the order of the graph's output; one without a
    name is "". `subject` is the input in words, `channels` and `side` those of an image, else 0. `remarks`
    say what the trace does not show.
    """

    graph: fx.Graph
    constants: dict[fx.Node, Tensor]
    parameters: dict[int, str]
    tensors: dict[int, str]
    outputs: tuple[str, ...]
    subject: str
    channels: int = 0
    side: int = 0
    remarks: tuple[str, ...] = ()
    parameter_count: int = 0
    in_place: bool = False
    """Whether the model itself was traced, since it cannot be copied, or a copy of it runs it."""


@dataclass(frozen=True)
class ModelInput:
    """One input that a model may take: `draw` makes it, and `call` hands it to the model."""

    subject: str
    draw: Callable[[], Tensor]
    call: Callable[[nn.Module, Tensor], Any]
    channels: int = 0
    side: int = 0
    kind: str = "image"


def trace_model(model: nn.Module, side: int | None = None) -> Trace:
    """Traces a copy of `model` in float32 on the CPU, with in-place writes functionalised.

    BN uses its running statistics. Modules without buffers are in training mode, so that dropout shows,
    unless the model then has more outputs than in evaluation mode, or leaves out layers.

    Args:
        model: any module that takes a batch of images, a list of them, or a sequence.
        side: pixels a side of the image; by default the usual sizes are tried in turn.

    Raises:
        InputError: the model takes none of these; the message quotes its own error.
    """
    model = unwrap_model(model)
    try:
        traced = _trace(model, side, in_place=False)
    except InputError:
        # What was not copied runs in its own type.
        if not any(map(_is_narrow, (*model.parameters(), *model.buffers()))):
            raise
        with suppress(InputError):
            return _trace(model, side, in_place=True)
        raise
    module_tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    if module_tensors.isdisjoint(map(id, traced.constants.values())):
        return traced
    return traced if traced.in_place else _trace(model, side, in_place=True)


def _trace(model: nn.Module, side: int | None, *, in_place: bool) -> Trace:
    with _copy_for_tracing(model, in_place=in_place) as (traceable, remarks), _without_compilation():
        inputs = list(_possible_inputs(traceable, side))
        errors: dict[ModelInput, str] = {}
        for tried in inputs:
            try:
                return replace(_trace_input(traceable, tried, remarks), in_place=traceable is model)
            except (Exception, SystemExit) as error:  # a foreign model may raise anything
                errors[tried] = error_line(error)
        runs = next((candidate for candidate in inputs if _runs(traceable, candidate)), None)
        if runs is not None:
            raise InputError(
                f"the model takes {runs.subject}, but its operators cannot be recorded: {errors[runs]}"
            )
        raise InputError(_refusal(errors))


def _refusal(errors: Mapping[ModelInput, str]) -> str:
    """What the model does not take, with its own error at the first that was tried."""
    first, *_ = errors
    alternatives = [candidate.subject for candidate in errors if candidate.kind != "image"]
    sides = ", ".join(
        str(candidate.side)
        for candidate in errors
        if (candidate.kind, candidate.channels) == ("image", first.channels)
    )
    if first.kind == "image":
        return f"the model takes no image of {first.channels} channels and side {sides}: {errors[first]}"
    return f"the model takes no image, and not {' or '.join(alternatives)}: {errors[first]}"


@contextmanager
def converted(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model itself, for this while in another type and on the CPU; then as before, modes too."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.data for tensor in tensors]
    # A frozen ScriptModule has no such attribute.
    modes = [(module, getattr(module, "training", False)) for module in model.modules()]
    try:
        for tensor, value in zip(tensors, values, strict=True):
            if value.is_floating_point():
                tensor.data = value.to("cpu", dtype, copy=True)
            else:
                tensor.data = value.to("cpu", copy=True)
        yield model
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value
        for module, mode in modes:
            _set_mode(module, training=mode)


@contextmanager
def _copy_for_tracing(model: nn.Module, *, in_place: bool) -> Iterator[tuple[nn.Module, list[str]]]:
    """A copy in float32 on the CPU; where the model cannot be copied, the model itself, restored behind."""
    if in_place:
        with converted(model, torch.float32):
            yield model, []
        return
    tensors = [*model.parameters(), *model.buffers()]
    try:
        copied, remarks = _in_float32(_copied(model))
    except Exception as error:
        if _is_uninitialised(model):
            raise InputError("the model has lazy layers that cannot be copied; call it once first") from None
        if any(is_lazy(tensor) or tensor.device.type != "cpu" or _is_narrow(tensor) for tensor in tensors):
            raise InputError(f"the model cannot be copied to the CPU: {error_line(error)}") from None
        copied, remarks = model, []
    # A frozen ScriptModule has no such attribute.
    modes = [(module, getattr(module, "training", False)) for module in model.modules()]
    try:
        yield copied, remarks
    finally:
        for module, mode in modes:
            _set_mode(module, training=mode)


def _copied(model: nn.Module) -> nn.Module:
    # deepcopy cannot copy a lazy tensor; it holds a type and a place and no numbers, so a new one stands in.
    lazy = [tensor for tensor in (*model.parameters(), *model.buffers()) if is_lazy(tensor)]
    memo: dict[int, object] = {
        id(tensor): cast("Any", type(tensor))(tensor.requires_grad, device=tensor.device, dtype=tensor.dtype)
        for tensor in lazy
    }
    return copy.deepcopy(model, memo)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The module inside of torch.compile's and of the parallel wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _in_float32(model: nn.Module) -> tuple[nn.Module, list[str]]:
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if not is_lazy(tensor)]
    if any(tensor.is_meta for tensor in tensors):
        model = model.to_empty(device="cpu")
        _fill(model)
        return model.float(), ["what its weights hold: they lie on the meta device, so random ones are read"]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        model = model.cpu()
    if any(_is_narrow(tensor) for tensor in tensors):
        model = model.float()
    return model, []


def _fill(model: nn.Module) -> None:
    """Values for tensors that came without any, so that no layer is blocked by a zero."""
    generator = _new_generator()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            buffer.fill_(0 if name.endswith("mean") or not buffer.is_floating_point() else 1)


def _possible_inputs(model: nn.Module, side: int | None) -> Iterator[ModelInput]:
    """Images in the sizes and channels that the model may expect, then sequences."""
    if not any(tensor.ndim == 4 for tensor in _initialised(model)) and not _is_uninitialised(model):
        yield from _volumes(model, side)
        yield from _sequences(model)
    hinted = _hinted_side(model)
    sides = (side,) if side else tuple(dict.fromkeys((32, *hinted, *USUAL_SIDES)))
    guess = _input_channels(model)
    for image_side in sides:
        yield _image(guess, image_side)
    for channels in dict.fromkeys((*_first_convolution(model), *USUAL_CHANNELS)):
        if channels != guess:
            yield from (_image(channels, image_side) for image_side in sides[:3])
    yield _image_list(guess, sides[0] if side else 224)


def _is_uninitialised(model: nn.Module) -> bool:
    return any(map(is_lazy, (*model.parameters(), *model.buffers())))


def _initialised(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.parameters() if not is_lazy(tensor)]


def _image(channels: int, side: int) -> ModelInput:
    return ModelInput(
        f"an image of {channels} channels and side {side}",
        lambda: torch.randn(1, channels, side, side, generator=_new_generator()),
        lambda model, x: model(x),
        channels,
        side,
    )


def _image_list(channels: int, side: int) -> ModelInput:
    return ModelInput(
        f"a list of images of {channels} channels, here one of side {side}",
        lambda: torch.rand(1, channels, side, side, generator=_new_generator()),
        lambda model, x: model([x[0]]),
        channels,
        side,
        kind="list",
    )


def _sequences(model: nn.Module) -> Iterator[ModelInput]:
    """A sequence of tokens or of vectors, as the first recurrent, embedding or linear layer takes it."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield ModelInput(
                f"a sequence of {SEQUENCE_STEPS} tokens",
                lambda count=module.num_embeddings: torch.randint(  # type: ignore[misc]
                    count, (1, SEQUENCE_STEPS), generator=_new_generator()
                ),
                lambda model, x: model(x),
                kind="sequence",
            )
            return
        width = next(
            (
                size
                for name in ("input_size", "embed_dim", "in_features")
                if isinstance(size := getattr(module, name, None), int)
            ),
            None,
        )
        if width:
            kinds = {"a sequence of 8 vectors": (1, SEQUENCE_STEPS, width), "a vector": (1, width)}
            for text, shape in kinds.items():
                yield ModelInput(
                    f"{text} of {width} numbers",
                    lambda shape=shape: torch.randn(shape, generator=_new_generator()),  # type: ignore[misc]
                    lambda model, x: model(x),
                    kind="sequence",
                )
            return


def _volumes(model: nn.Module, side: int | None) -> Iterator[ModelInput]:
    """A signal or a video, as the first kernel of one or of three dimensions takes it."""
    kernel = next((tensor for tensor in _initialised(model) if tensor.ndim in (3, 5)), None)
    if kernel is None:
        return
    shapes: list[tuple[int, ...]] = [(side or 256,)]
    if kernel.ndim == 5:
        shapes = [(16, side or 112, side or 112), (16, 224, 224), (side or 32, side or 32, side or 32)]
    for shape in shapes:
        full = (1, kernel.shape[1], *shape)
        yield ModelInput(
            f"a {'signal' if kernel.ndim == 3 else 'video'} of {kernel.shape[1]} channels",
            lambda full=full: torch.randn(full, generator=_new_generator()),  # type: ignore[misc]
            lambda model, x: model(x),
            kernel.shape[1],
            shape[-1],
            kind="volume",
        )


def _hinted_side(model: nn.Module) -> tuple[int, ...]:
    """The side that the model itself says it takes, in the attributes that libraries use for it."""
    configuration = getattr(model, "default_cfg", None)
    hints = [getattr(model, name, None) for name in ("in_size", "image_size", "img_size", "input_size")]
    if isinstance(configuration, Mapping):
        hints.append(configuration.get("input_size"))
    sides = [hint[-1] if isinstance(hint, (tuple, list)) and hint else hint for hint in hints]
    return tuple(hint for hint in sides if isinstance(hint, int) and 0 < hint <= 1024)


def _input_channels(model: nn.Module) -> int:
    channels = [kernel.shape[1] for kernel in _initialised(model) if kernel.ndim == 4]
    # The first convolution declared need not be the first that runs; images have few channels.
    few = [count for count in channels if count <= MOST_CHANNELS]
    if channels and (channels[0] <= MOST_CHANNELS or not few):
        return channels[0]
    return max(few) if few else 3


def _first_convolution(model: nn.Module) -> Iterator[int]:
    """The channels of the first declared convolution, in groups or not."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 0:
            yield module.in_channels
            return


def _new_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _without_compilation() -> AbstractContextManager[Any]:
    """Compiled parts are called without their compiler, which otherwise takes the operators for itself."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-untyped-call, no-any-return, unused-ignore]


def _set_modes(model: nn.Module, mode: Mode) -> None:
    for module in model.modules():
        has_buffers = bool(list(module.buffers(recurse=False)))
        is_whole = mode == "evaluation" and bool(list(module.children()))
        _set_mode(module, training=mode != "still" and not has_buffers and not is_whole)


def _set_mode(module: nn.Module, *, training: bool) -> None:
    if getattr(module, "training", training) != training:
        module.training = training


def _trace_input(model: nn.Module, tried: ModelInput, remarks: list[str]) -> Trace:
    """The trace in training mode; in evaluation mode where training adds outputs or leaves out layers."""
    if _is_uninitialised(model):
        model = _copied(model)
        _call(model, tried)
    try:
        trained = _record(model, tried, "training")
    except Exception:
        try:
            return _as_trace(model, tried, _record(model, tried, "evaluation"), remarks)
        except Exception:
            return _as_trace(model, tried, _record(model, tried, "still"), remarks)
    unused = _unused(model, trained)
    if len(trained.outputs) == 1 and not unused:
        return _as_trace(model, tried, trained, remarks)
    try:
        evaluated = _record(model, tried, "evaluation")
    except Exception:
        return _as_trace(model, tried, trained, remarks)
    more = len(trained.outputs) - len(evaluated.outputs)
    if more > 0:
        plural = "output" if more == 1 else "outputs"
        text = f"in training mode it has {more} {plural} more (auxiliary heads): evaluation mode is read"
        return _as_trace(model, tried, evaluated, [*remarks, text])
    if len(_unused(model, evaluated)) < len(unused):
        text = "in training mode it leaves out layers at random: evaluation mode is read"
        return _as_trace(model, tried, evaluated, [*remarks, text])
    return _as_trace(model, tried, trained, remarks)


def _unused(model: nn.Module, recorder: _Recorder) -> set[int]:
    used = {id(tensor) for tensor in recorder.constants.values()}
    return {id(tensor) for tensor in model.parameters()} - used


def _as_trace(model: nn.Module, tried: ModelInput, recorder: _Recorder, remarks: list[str]) -> Trace:
    parameters = {id(tensor): name for name, tensor in model.named_parameters()}
    tensors = parameters | {id(tensor): name for name, tensor in model.named_buffers()}
    return Trace(
        recorder.graph,
        recorder.constants,
        parameters,
        tensors,
        recorder.outputs,
        tried.subject,
        tried.channels,
        tried.side,
        tuple(remarks),
        sum(tensor.numel() for tensor in model.parameters()),
    )


def _call(model: nn.Module, tried: ModelInput) -> Any:
    _set_modes(model, "still")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tried.call(model, tried.draw())


def _runs(model: nn.Module, tried: ModelInput) -> bool:
    """Whether the model takes this input when nothing is recorded."""
    try:
        output = _call(_copied(model), tried)
    except (Exception, SystemExit):
        return False
    return bool(list(output_tensors(output)))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Records every operator below autograd, with its input and output tensors."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[fx.Node, Tensor] = {}
        self.outputs: tuple[str, ...] = ()
        self._nodes = WeakTensorKeyDictionary()
        self._assign_node(image, self.graph.placeholder("image"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.is_inference_mode_enabled() and _has_parts(func):
            # In inference mode operators arrive whole that elsewhere arrive as their parts.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        arguments = fx.node.map_aggregate((args, kwargs or {}), self._node_or_value)
        is_write = _writes_in_place(func)
        call = self.graph.call_function(_functional(func) if is_write else func, *arguments)
        output = func(*args, **(kwargs or {}))
        if is_write:
            self._write(args[0], call)
        else:
            self._assign_node(output, call)
        return output

    def _write(self, target: Tensor, call: fx.Node) -> None:
        """Gives every tensor that shares the memory of `target` its value after `call` has written it.

        PyTorch's own operators write so, as circular padding does; a module's own writes are functionalised.
        """
        sharing = [tensor for tensor in self._nodes if _share_memory(tensor, target)]
        base = max((target, *sharing), key=Tensor.numel)
        call.meta["shape"] = tuple(target.shape)
        if base is not target:
            if not base.is_contiguous() or base.storage_offset():
                raise InputError(f"{call.target} writes into a part of a tensor that is not contiguous")
            scatter = torch.ops.aten.as_strided_scatter.default
            call = self.graph.call_function(scatter, (self.node(base), call, *_layout(target)))
        for tensor in sharing:
            if tensor is base:
                self._assign_node(tensor, call)
            else:
                view = self.graph.call_function(torch.ops.aten.as_strided.default, (call, *_layout(tensor)))
                self._assign_node(tensor, view)

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


def _writes_in_place(func: Any) -> bool:
    name: str = func._schema.name
    return name.startswith("aten::") and name.endswith("_") and not name.endswith("__")


def _functional(func: Any) -> Any:
    """The operator that puts out what an in-place one writes; without one of that form, itself."""
    packet = getattr(torch.ops.aten, func._schema.name.partition("::")[2].removesuffix("_"), None)
    return getattr(packet, func._overloadname, func)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _layout(tensor: Tensor) -> tuple[list[int], list[int], int]:
    return list(tensor.size()), list(tensor.stride()), int(tensor.storage_offset())


def _has_parts(func: Any) -> bool:
    has_kernel: bool = torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    )
    return has_kernel


def _record(model: nn.Module, tried: ModelInput, mode: Mode) -> _Recorder:
    names: list[str] = []

    def once(x: Tensor) -> tuple[Tensor, ...]:
        named = list(output_tensors(tried.call(model, x)))
        names.extend(name for name, _ in named)
        return tuple(tensor for _, tensor in named)

    _set_modes(model, mode)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = tried.draw()
        recorder = _Recorder(image)
        with recorder:
            outputs = functionalize(once)(image)
        if not outputs:
            raise InputError("its output holds no tensor")
        recorder.graph.output(tuple(recorder.node(tensor) for tensor in outputs))
    recorder.outputs = tuple(names)
    return recorder


def output_tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a model's output, with its name there: "out", "0.boxes"; "" for a lone tensor."""
    if isinstance(output, Tensor):
        yield name, output
        return
    if isinstance(output, Mapping):
        parts = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, (list, tuple)):
        keys = getattr(output, "_fields", None) or tuple(map(str, range(len(output))))
        parts = list(zip(keys, output, strict=True))
    else:
        return
    for key, value in parts:
        yield from output_tensors(value, f"{name}.{key}" if name else key)
