"""Memory is a choice that changes no bit, and its prediction is what autograd keeps."""

import copy
import gc
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from kernel_cases import needs_kernels
from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import cpu_pool, native_build
from kilolayer.kernels.fused_unit import FusedUnit
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.networks.recompute import Segment
from kilolayer.networks.saved_activations import network_activations
from kilolayer.training import Experiment
from kilolayer.training.memory_budget import parse_memory
from kilolayer.training.memory_plan import plan_memory
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ORIGINAL,
    Aggregated,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    Unit,
    Zero,
    ZeroPad,
)
from kilolayer.values import from_json, to_json
from tiny_runs import tiny

UNITS = {
    **{f"{name} {kind}": replace(unit, arrangement=arrangement)
       for name, arrangement in ARRANGEMENTS.items()
       for kind, unit in (("basic", BASIC), ("bottleneck", BOTTLENECK))},
    "dropout": replace(BASIC, h=Dropout(0.5), arrangement=FULL_PREACT),
    "gate": replace(BASIC, h=ExclusiveGate(-1.0)),
    "plain": replace(BASIC, h=Zero()),
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "projections": replace(BOTTLENECK, h=Projection()),
    "paths": Unit(Aggregated(2, 32, form="split"), downsample=Projection()),
}  # fmt: skip
WHOLE = {
    "basic": BASIC,
    "basic with projections": replace(BASIC, downsample=Projection()),
    "bottleneck": BOTTLENECK,
    "bottleneck, padded": replace(BOTTLENECK, downsample=ZeroPad("preactivated")),
    "bottleneck, stride on the 3×3": replace(BOTTLENECK, branch=Bottleneck(stride_on="3x3")),
}
DIVISIONS = {
    "each unit": (Segment(1),) * 6,
    "two segments": (Segment(4), Segment(2, recomputed=False)),
    "parts": (Segment(6, parts=(3, 2, 1)),),
    "parts and kept": (Segment(2), Segment(3, parts=(2, 1)), Segment(1, recomputed=False)),
}


def network(unit, units=6):
    widths = (64, 128) if isinstance(unit.branch, Aggregated) else (4, 8)
    return Network(Stem(4), (Stage(units, widths[0]), Stage(units, widths[1], 2)), unit, image_size=8)


def trained(model, x, precision):
    """Everything that one step makes: output, gradients, running statistics, the next random number."""
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = model(x)
    y.float().square().sum().backward()
    return [y, *(p.grad for p in model.parameters()), *model.buffers(), torch.rand(1)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("division", DIVISIONS.values(), ids=DIVISIONS)
@pytest.mark.parametrize("name", ["full_preactivation bottleneck", "original basic", "dropout", "gate"])
def test_no_division_changes_a_bit(name, division, precision):
    model = build(network(UNITS[name]))
    divided = copy.deepcopy(model)
    divided.segments = {"stage1": division, "stage2": division}
    x = torch.randn(4, 3, 8, 8)
    for plain, saving in zip(trained(model, x, precision), trained(divided, x, precision), strict=True):
        assert torch.equal(plain, saving)


def kept_bytes(unit, x):
    """Distinct storages that autograd saves in a unit's forward pass, weights and statistics apart."""
    own = {t.untyped_storage().data_ptr() for t in (*unit.parameters(), *unit.buffers())}
    sizes, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.ndim == 4:
            alive.append(tensor)  # so that no address is used twice
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = unit(x)
    return sizes, y


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_the_prediction_is_what_autograd_keeps(unit):
    described = network(unit, units=2)
    model = build(described)
    x = model.stem(torch.randn(2, 3, 8, 8)).detach().requires_grad_()
    names = [placed.name for placed in described.units()]
    for name, kept in zip(names, network_activations(described), strict=True):
        sizes, y = kept_bytes(model.get_submodule(name), x)
        read, gives = x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()
        assert kept.saves_input == (read in sizes)
        inside = sum(size for address, size in sizes.items() if address not in (read, gives))
        assert inside == 4 * 2 * kept.inside
        x = y.detach().requires_grad_()


@needs_kernels
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("arrangement", [ORIGINAL, FULL_PREACT], ids=["original", "pre-activated"])
def test_the_prediction_is_what_whole_units_keep(arrangement, name):
    unit = replace(WHOLE[name], arrangement=arrangement)
    described = Network(Stem(16), (Stage(2, 16), Stage(2, 32, 2)), unit, image_size=8)
    model = build(described).to(memory_format=torch.channels_last)
    kernels.fuse(model)
    x = torch.randn(2, described.stem.channels, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    x.requires_grad_()
    for placed, kept in zip(described.units(), kernels.fused_saved_activations(model), strict=True):
        module = model.get_submodule(placed.name)
        with torch.autocast("cpu", torch.bfloat16):
            sizes, y = kept_bytes(module, x)
        read, gives = x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()
        assert isinstance(module, FusedUnit)
        assert kept.saves_input == (read in sizes)
        inside = sum(size for address, size in sizes.items() if address not in (read, gives))
        assert inside == 2 * 2 * kept.inside
        x = y.detach().requires_grad_()


def test_more_levels_need_less():
    peaks = [
        plan_memory(describe("preact_resnet164_cifar"), memory, 64, "bf16")
        for memory in ("fastest", "balanced", "smallest")
    ]
    assert [each.recomputed_share for each in peaks] == sorted(each.recomputed_share for each in peaks)
    sizes = [each.peak.total_bytes for each in peaks]
    assert sizes[0] > 3 * sizes[1]
    assert sizes[1] > sizes[2]


def test_depth_costs_its_root():
    """Four times the depth takes about twice the memory for activations (weights and graphs apart)."""
    steps = []
    for depth in (164, 650):
        found = describe(f"preact_resnet{depth}_cifar")
        steps.append(plan_memory(found, "balanced", 64, "bf16").peak.step_bytes - 4 * found.parameters)
    assert steps[1] / steps[0] < 2.2


def test_bytes_take_the_least_recomputation_that_fits():
    shares = [
        plan_memory(describe("preact_resnet164_cifar"), memory, 64, "bf16").recomputed_share
        for memory in ("2GB", "700MB", "400MB", "200MB")
    ]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[1] < 1


def test_too_little_memory_names_the_smallest():
    described = describe("preact_resnet164_cifar")
    with pytest.raises(InputError, match=r"the smallest plan needs (\d+)MB") as refused:
        plan_memory(described, "50MB", 64, "bf16")
    least = str(refused.value).partition("needs ")[2].partition(";")[0]
    assert plan_memory(described, least, 64, "bf16").peak.total_bytes <= parse_memory(least)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("800 MB", 8 * 10**8), ("7", 7)]
)
def test_bytes_in_words(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2TB", "fast", "1e9", "2 gb", 5])
def test_what_is_no_memory_is_refused(text):
    with pytest.raises(
        InputError, match=r"activation_memory is .*allowed: fastest, balanced, smallest, or bytes"
    ):
        Experiment(network(BASIC), tiny().data, tiny().recipe, activation_memory=text)


@pytest.mark.parametrize(("before", "now"), [(True, "balanced"), (False, "fastest")])
def test_an_older_experiment_is_read(before, now):
    written = json.loads(to_json(tiny()))
    del written["activation_memory"]
    read = from_json(json.dumps(written | {"grad_checkpointing": before}), Experiment)
    assert read == tiny(activation_memory=now)


POOLED = """
import torch
from kilolayer.kernels import cpu_pool, native_build
from kilolayer.kernels.fused_unit import FusedUnit
said = cpu_pool.install_pool()
from kilolayer.training.memory_plan import resident_bytes as resident
def mix():
    kept = []
    for size in (4, 1, 3, 2) * 6:
        kept.append(torch.full((size * 2**20,), 1, dtype=torch.uint8))
        kept.append(torch.arange(300.0))
        if size == 3:
            del kept[::4]
    assert all(bool((one == 1).all()) for one in kept if one.dtype == torch.uint8)
    assert all(torch.equal(one, torch.arange(300.0)) for one in kept if one.dtype != torch.uint8)
mix()
first = resident()
for _ in range(20):
    mix()
grown = torch.ones(4).resize_(10**6)
print(said.partition(":")[0], resident() - first < 8 * 2**20, grown.shape[0])
"""


def test_the_pool_holds_no_more_than_was_in_use_at_once():
    allocation = cpu_pool.install_pool()
    assert "error:" not in allocation  # the compiler's word on our own source
    if allocation.startswith("malloc"):
        pytest.skip(allocation)
    done = subprocess.run([sys.executable, "-c", POOLED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pool", "of", "exact", "sizes", "True", "1000000"]


def test_without_a_compiler_malloc_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_build.shutil, "which", lambda name: None)
    said = cpu_pool.install_pool.__wrapped__()
    assert re.fullmatch("malloc: (no C.. compiler is installed: .*|native code is for Linux, .*)", said)
    monkeypatch.setenv("KILOLAYER_POOL", "0")
    assert cpu_pool.install_pool.__wrapped__() == "malloc: KILOLAYER_POOL is 0"


def maps_alive():
    gc.collect()
    return sum(type(one) is torch.Tensor and one.ndim == 4 for one in gc.get_objects())


def test_a_segment_goes_with_its_graph():
    """Nothing that was computed again outlives the backward pass."""
    model = build(network(BASIC))
    model.segments = {"stage1": DIVISIONS["parts"], "stage2": DIVISIONS["parts"]}
    before = maps_alive()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.zero_grad()
    assert maps_alive() == before
