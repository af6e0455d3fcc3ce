"""Layer responses: deviations of convolutions' outputs, BN's statistics, dead channels (P1, Fig. 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from kilolayer.chart import Chart
from kilolayer.data import load
from kilolayer.errors import InputError
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.scalars import mean_present, rms
from kilolayer.measure.series import share_text, stage_starts, unit_series
from kilolayer.runs import Run
from kilolayer.runs.data_record import locate_data


@dataclass(frozen=True)
class LayerResponse:
    """The response of a convolution: its output, behind its BN if it has one, before ReLU and addition."""

    name: str
    kernel: int
    """The side of the convolution's kernel."""
    normalised: bool
    """Whether a BN reads the convolution's output."""
    std: float
    """The standard deviation over all elements of the response on the batch."""
    predicted: float
    """Behind a BN √(mean γ² + var β). Otherwise rms(W) · √(mean of Σ x² over the k×k windows that it reads),
    which holds for weights independent of x."""
    side: int = 0
    """Pixels a side of the output."""


@dataclass(frozen=True)
class NormStatistics:
    """One BN on a batch; every value is a root mean square over channels."""

    name: str
    mean: float
    """The batch mean μ of its input."""
    std: float
    """The batch deviation σ of its input."""
    scale: float
    """γ."""
    shift: float
    """β."""
    side: int = 0
    """Pixels a side of the input."""


@dataclass(frozen=True)
class ReluActivity:
    """One ReLU on a batch."""

    channels: int
    zeros: float
    """The share of its elements that are 0."""
    dead: float
    """The share of its channels that are 0 for every image and position of the batch."""
    side: int = 0
    """Pixels a side."""


@dataclass(frozen=True)
class LayerResponses:
    """Every convolution, BN and ReLU of a network on one batch, in execution order."""

    heading: ClassVar[str] = "Responses"

    network: str
    layers: tuple[LayerResponse, ...]
    norms: tuple[NormStatistics, ...]
    relus: tuple[ReluActivity, ...]

    def spatial_layers(self) -> tuple[LayerResponse, ...]:
        """The 3×3 layers, which are the ones of P1's Fig. 7."""
        return tuple(layer for layer in self.layers if layer.kernel == 3)

    def charts(self) -> tuple[Chart, ...]:
        return (self._std_chart(), self._descending_chart(), self._norm_chart(), self._dead_chart())

    def summary(self) -> tuple[tuple[str, str], ...]:
        """The figures of 3×3 layers, ReLUs and BNs; a kind of layer that the network lacks has none."""
        rows = [("3×3 layers", str(len(self.spatial_layers())))]
        if self.spatial_layers():
            rows.insert(0, ("mean std of the 3×3 layers' responses", f"{self.mean_std:.3g}"))
        if self.relus:
            zeros = mean_present([relu.zeros for relu in self.relus])
            rows.append(("elements that ReLUs set to 0, mean", share_text(zeros)))
            rows.append(("dead channels", share_text(self.dead)))
            rows.append(("… in the worst ReLU", share_text(max(relu.dead for relu in self.relus))))
        if self.norms:
            largest = max(norm.std for norm in self.norms)
            rows.append(("largest batch deviation at a BN's input", f"{largest:.3g}"))
        return tuple(rows)

    def finding(self) -> str:
        if not self.relus:
            dead = "the network has no ReLU"
        else:
            dead = f"{share_text(self.dead)} of the channels are dead" if self.dead else "no channel is dead"
        layers = self.spatial_layers()
        if not layers:
            return f"no layer is 3×3; {dead}"
        low, high = min(layer.std for layer in layers), max(layer.std for layer in layers)
        spread = f"{low:.3g} to {high:.3g}, {self.mean_std:.3g} on average"
        return f"the 3×3 layers' responses have standard deviations of {spread}; {dead}"

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """The mean deviation of responses, and the share of dead channels, where there are such layers."""
        responses = (("mean std of responses", self.mean_std),) if self.spatial_layers() else ()
        return (*responses, *((("dead channels", self.dead),) if self.relus else ()))

    @property
    def mean_std(self) -> float:
        """The mean standard deviation of the 3×3 layers' responses."""
        return mean_present([layer.std for layer in self.spatial_layers()])

    @property
    def dead(self) -> float:
        """The share of dead channels among all channels behind ReLUs."""
        channels = sum(relu.channels for relu in self.relus)
        return sum(relu.dead * relu.channels for relu in self.relus) / channels if channels else 0.0

    def _std_chart(self) -> Chart:
        layers = self.spatial_layers()
        return Chart(
            "std",
            "Deviation of the 3×3 layers' responses",
            "std of BN(W x), before ReLU and addition   (P1, Fig. 7)",
            "3×3 layer, from the input",
            "standard deviation",
            (
                unit_series("response", [layer.std for layer in layers]),
                unit_series("response", [layer.predicted for layer in layers], "predicted"),
            ),
            note=(f"mean {self.mean_std:.3g} over {len(layers)} layers" if layers else "no layer is 3×3")
            + ("" if any(layer.normalised for layer in layers) else "; no BN normalises them"),
            stages=_stage_starts(layers),
        )

    def _descending_chart(self) -> Chart:
        stds = sorted((layer.std for layer in self.spatial_layers()), reverse=True)
        return Chart(
            "sorted",
            "Deviation of the 3×3 layers' responses, sorted",
            "std of BN(W x), in descending order   (P1, Fig. 7, below)",
            "3×3 layer, from the largest",
            "standard deviation",
            (unit_series("response", stds),),
        )

    def _norm_chart(self) -> Chart:
        return Chart(
            "norms",
            "BN's input statistics, scale and shift",
            "BN(z) = γ (z − μ) / σ + β",
            "BN, from the input",
            "RMS over channels",
            (
                unit_series("σ of the batch", [norm.std for norm in self.norms]),
                unit_series("μ of the batch", [norm.mean for norm in self.norms]),
                unit_series("γ", [norm.scale for norm in self.norms]),
                unit_series("β", [norm.shift or None for norm in self.norms]),
            ),
            log_y=True,
            stages=_stage_starts(self.norms),
        )

    def _dead_chart(self) -> Chart:
        return Chart(
            "dead",
            "Elements and channels that ReLUs set to zero",
            "max(0, z)",
            "ReLU, from the input",
            "share",
            (
                unit_series("elements that are 0", [relu.zeros for relu in self.relus]),
                unit_series("dead channels", [relu.dead for relu in self.relus]),
            ),
            note=f"{share_text(self.dead)} of all channels are dead on this batch"
            if self.relus
            else "the network has no ReLU",
            stages=_stage_starts(self.relus),
        )


LayerRecords = Sequence[LayerResponse] | Sequence[NormStatistics] | Sequence[ReluActivity]


def _stage_starts(records: LayerRecords) -> tuple[float, ...]:
    """The positions at which maps become smaller than all before.

    A shortcut may run before or behind its branch, so a smaller map can be followed by a larger one.
    """
    return stage_starts([*accumulate((part.side for part in records), min)])


@torch.no_grad()
def measure_layer_responses(
    model: nn.Module, x: Tensor, *, network: str = "", training: bool = True
) -> LayerResponses:
    """Measures the response of every layer in one pass of a batch.

        std(BN(W x))          (P1, Fig. 7)

    Args:
        model: any module, whose units need no names; it is left as it was.
        x: a normalised batch, (N, C, H, W).
        network: the name to show; by default the class's.
        training: BN uses the batch's statistics, as P1's figure does; off, its running ones.

    Raises:
        InputError: the module runs no convolution.

    >>> from kilolayer.networks import build, describe
    >>> result = measure_layer_responses(build(describe("resnet8_cifar")), torch.randn(4, 3, 32, 32))
    >>> [round(layer.std, 2) for layer in result.spatial_layers()][:3]  # γ = 1 and β = 0 at initialisation
    [1.0, 1.0, 1.0]
    """
    record = _ResponseRecord()
    with preserve_state(model, training=training), _hooks_on(model, record), _ReluRecorder(record):
        model(x)
    if not record.layers:
        raise InputError(f"{type(model).__name__} runs no convolution, so it has no layer responses")
    return LayerResponses(
        network or type(model).__name__, tuple(record.layers), tuple(record.norms), tuple(record.relus)
    )


def layer_responses_of(analysis_input: AnalysisInput) -> LayerResponses:
    """The analysis of an `AnalysisInput`, as the registry runs it."""
    return measure_layer_responses(analysis_input.model, analysis_input.x, network=analysis_input.name)


class _ResponseRecord:
    """The layers that have run; `last` is the newest convolution's output, until a BN has read it."""

    def __init__(self) -> None:
        self.layers: list[LayerResponse] = []
        self.norms: list[NormStatistics] = []
        self.relus: list[ReluActivity] = []
        self.last: Tensor | None = None
        self.version = 0


@contextmanager
def _hooks_on(model: nn.Module, record: _ResponseRecord) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, part in model.named_modules():
            make_hook = _recorder_of(part)
            if make_hook is not None:
                hooks.callback(part.register_forward_hook(make_hook(record, name)).remove)
        yield


HookFactory = Callable[[_ResponseRecord, str], Callable[..., None]]


def _recorder_of(part: nn.Module) -> HookFactory | None:
    match part:
        case nn.Conv2d():
            return _record_convolution
        case _BatchNorm():
            return _record_norm
        case _:
            return None


def _record_convolution(record: _ResponseRecord, name: str) -> Callable[..., None]:
    def hook(module: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        record.last, record.version = out, out._version
        record.layers.append(
            LayerResponse(
                name,
                int(module.kernel_size[0]),
                False,
                _std(out),
                _predict_without_norm(module, args[0]),
                out.shape[-1],
            )
        )

    return hook


def _record_norm(record: _ResponseRecord, name: str) -> Callable[..., None]:
    def hook(module: _BatchNorm, args: tuple[Tensor, ...], out: Tensor) -> None:
        record.norms.append(_norm_statistics(name, module, args[0]))
        # An in-place addition (out += shortcut) can have changed that tensor.
        if args[0] is record.last and args[0]._version == record.version:
            layer = record.layers.pop()
            record.layers.append(
                replace(layer, normalised=True, std=_std(out), predicted=_predict_after_norm(module))
            )
        record.last = None

    return hook


def _norm_statistics(name: str, module: _BatchNorm, z: Tensor) -> NormStatistics:
    over = [dimension for dimension in range(z.ndim) if dimension != 1]
    mean, variance = z.double().mean(over), z.double().var(over, unbiased=False)
    scale, shift = (rms(module.weight), rms(module.bias)) if module.affine else (1.0, 0.0)
    return NormStatistics(name, rms(mean), float(variance.mean().sqrt()), scale, shift, _side(z))


def _predict_after_norm(norm: _BatchNorm) -> float:
    """std(γ ẑ + β) over all channels, where ẑ has mean 0 and variance 1 in each."""
    if not norm.affine:
        return 1.0
    scale, shift = norm.weight.double(), norm.bias.double()
    return float((scale.square().mean() + shift.var(unbiased=False)).sqrt())


def _predict_without_norm(convolution: nn.Conv2d, x: Tensor) -> float:
    """std(W x) for weights independent of x; the zeros of the padding count as pixels."""
    squares = x.double().square().sum(1, keepdim=True) / convolution.groups
    window = squares.new_ones(1, 1, *convolution.kernel_size)
    window_sums = functional.conv2d(
        squares, window, None, convolution.stride, convolution.padding, convolution.dilation
    )
    return rms(convolution.weight) * math.sqrt(float(window_sums.mean()))


class _ReluRecorder(TorchFunctionMode):
    """Records every ReLU, a module's or a function's."""

    def __init__(self, record: _ResponseRecord) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("relu", "relu_") and isinstance(out, Tensor) and out.ndim > 1:
            quiet = (out == 0).transpose(0, 1).flatten(1)
            zeros, dead = float(quiet.double().mean()), float(quiet.all(1).double().mean())
            self._record.relus.append(ReluActivity(len(quiet), zeros, dead, _side(out)))
        return out


def _side(tensor: Tensor) -> int:
    """Pixels a side; 1 for a vector."""
    return int(tensor.shape[-1]) if tensor.ndim > 2 else 1


def _std(tensor: Tensor) -> float:
    return float(tensor.double().std(unbiased=False))


IMAGES = 128


@lru_cache(maxsize=64)
def measure_run_responses(path: Path) -> LayerResponses:
    """The responses of a trained run on up to 128 of its own training images: a cell of P1's Fig. 7.

    Raises:
        InputError: the run has no final weights yet, or its data cannot be read.
    """
    run = Run.open(path)
    data, weights = locate_data(run), run.weights()
    images = load(replace(data, subset=min(IMAGES, data.subset or IMAGES))).train
    return measure_layer_responses(
        weights.model, weights.statistics.normalize(images.pixels), network=path.name
    )
