"""What PyTorch and its tools expect of any network: BN is a BN, every module is called and heard once."""

import copy
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse as fuse_by_fx
from torch.optim.swa_utils import AveragedModel, update_bn

from kernel_cases import needs_kernels
from kilolayer import kernels
from kilolayer.networks import Network, Stage, Stem, build, create_model
from kilolayer.networks.recompute import Segment
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    Aggregated,
    Basic,
    ExclusiveGate,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
)

UNITS = {
    "original": BASIC,
    "pre-activated": replace(BASIC, arrangement=FULL_PREACT),
    "bottleneck": replace(BOTTLENECK, arrangement=FULL_PREACT, downsample=Projection()),
    "gated": replace(ONE_LAYER, h=ExclusiveGate(-1.0, batch_norm=True)),
    "shortcut-gated": replace(ONE_LAYER, h=ShortcutGate(-1.0)),
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "plain": replace(BASIC, h=Zero()),
    "split": Unit(Aggregated(2, 16, form="split"), downsample=Projection()),
    "concatenated": Unit(Aggregated(2, 16, form="concatenated"), downsample=Projection()),
    "wide": Unit(Basic(widen=2, dropout=0.3), arrangement=FULL_PREACT),
}
of_all_units = pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)


def network(unit=BASIC, width=4):
    torch.manual_seed(0)
    return build(Network(Stem(width), (Stage(2, width), Stage(2, 2 * width, 2)), unit, image_size=8))


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def twin(model):
    """The same network with BNs that PyTorch made."""
    other = copy.deepcopy(model)
    for module in list(other.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features))
    other.load_state_dict(model.state_dict())
    return other


def lived(unit=BASIC):
    model = network(unit)
    for _ in range(3):
        model(images())
    return model.eval()


def equal(one, other):
    """Whether two networks hold the same numbers, our counters in no state dict among them."""
    pairs = zip((*one.parameters(), *one.buffers()), (*other.parameters(), *other.buffers()), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@of_all_units
def test_every_bn_is_pytorchs_own_and_its_counter_in_no_state(unit):
    model = network(unit)
    assert {type(norm) for norm in norms(model)} == {nn.BatchNorm2d}
    assert not any(key.endswith("num_batches_tracked") for key in model.state_dict())


@of_all_units
def test_running_statistics_take_a_tenth_of_a_batch_and_epsilon_is_1e_5(unit):
    """PyTorch's and the papers' BN: a batch of mean 10 and variance 4 leaves 1.0 and 0.9 + 0.4."""
    for norm in norms(network(unit)):
        assert (norm.eps, norm.affine, norm.track_running_stats) == (1e-5, True, True)
        norm.train()
        norm(torch.tensor([8.0, 12.0]).repeat(norm.num_features, 32, 32).unsqueeze(0))
        torch.testing.assert_close(norm.running_mean, torch.full((norm.num_features,), 1.0))
        torch.testing.assert_close(norm.running_var, torch.full((norm.num_features,), 1.3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_training_is_that_with_pytorchs_bn(momentum):
    model = network()
    other = twin(model)
    for module in (*norms(model), *norms(other)):
        module.momentum = momentum
    for seed in range(3):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(model(x), other(x))
    assert equal(model, other)
    assert norms(model)[0].num_batches_tracked == 3


@pytest.mark.parametrize("kind", ["plain", "fused", "checkpointed"])
def test_update_bn_measures_the_running_figures_anew(kind):
    model = AveragedModel(network(width=16), use_buffers=True)
    model.update_parameters(network(width=16))
    other = AveragedModel(twin(network(width=16)), use_buffers=True)
    if kind == "fused":
        kernels.fuse(model.module)
    model.module.set_grad_checkpointing(kind == "checkpointed")
    data = [images(count) * 3 + 5 for count in (8, 4, 8)]
    for one in (model, other):
        update_bn(data, one)
    assert equal(model.module, other.module)
    assert all(norm.momentum == 0.1 for norm in norms(model))


@needs_kernels
def test_kernels_count_batches_as_pytorch_does():
    model = network(replace(BASIC, arrangement=FULL_PREACT), width=16).to(memory_format=torch.channels_last)
    assert kernels.fuse(model).fused_units
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            model(images().to(memory_format=torch.channels_last))
    assert {int(norm.num_batches_tracked) for norm in norms(model)} == {2}


@pytest.mark.parametrize("source", ["ours", "PyTorch's", "without version"])
@pytest.mark.parametrize("target", ["ours", "PyTorch's", "SyncBatchNorm", "on meta"])
def test_states_with_and_without_counters_fit_strictly(source, target):
    model = lived()
    state = (twin(model) if source == "PyTorch's" else model).state_dict()
    state = dict(state) if source == "without version" else state
    with torch.device("meta" if target == "on meta" else "cpu"):
        other = network()
    if target == "PyTorch's":
        other = twin(network())
    elif target == "SyncBatchNorm":
        other = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    other.load_state_dict(state, strict=True, assign=target == "on meta")
    assert torch.equal(other.to("cpu").eval()(images()), model(images()))
    assert other.train()(images()).isfinite().all()
    assert {int(norm.num_batches_tracked) for norm in norms(other)} == {1}


def test_sync_batch_norm_takes_our_place():
    model = lived()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert {type(norm) for norm in norms(synced)} == {nn.SyncBatchNorm}
    assert torch.equal(synced(images()), model(images()))
    synced.set_grad_checkpointing()
    trained = [one.train()(images()) for one in (synced, model)]
    trained[0].sum().backward()
    assert torch.equal(*trained)
    assert {int(norm.num_batches_tracked) for norm in norms(synced)} == {4}


CASTS = {
    "copied": copy.deepcopy,
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "bfloat16": nn.Module.bfloat16,
    "float64": nn.Module.double,
    "cast by to": lambda model: model.to(torch.float16).to(torch.float32),
    "without running figures": torch.func.replace_all_batch_norm_modules_,
    "synced": nn.SyncBatchNorm.convert_sync_batchnorm,
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_what_is_done_to_modules_is_done_to_ours(cast):
    one, other = cast(lived()), cast(twin(lived()))
    x = images().to(next(one.parameters()).dtype)
    for mode in (True, False):
        assert torch.equal(one.train(mode)(x), other.train(mode)(x))


def test_parameters_are_reset_as_pytorchs():
    found = []
    for model in (lived(), twin(lived())):
        torch.manual_seed(0)
        model.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
        found.append(model)
    assert equal(*found)
    assert all((norm.running_mean == 0).all() and norm.num_batches_tracked == 0 for norm in norms(found[0]))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_every_image_by_vmap(checkpointed):
    model = torch.func.replace_all_batch_norm_modules_(network())
    model.set_grad_checkpointing(checkpointed)
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images(3))
    wanted = [torch.func.grad(loss)(parameters, image) for image in images(3)]
    for name, gradients in found.items():
        torch.testing.assert_close(gradients, torch.stack([each[name] for each in wanted]))


@of_all_units
@pytest.mark.parametrize("training", [False, True])
def test_fx_traces_down_to_pytorchs_layers(unit, training):
    model = lived(unit).train(training)
    traced = fx.symbolic_trace(model)
    leaves = {
        type(traced.get_submodule(node.target)) for node in traced.graph.nodes if node.op == "call_module"
    }
    assert nn.BatchNorm2d in leaves
    assert all(leaf.__module__.startswith("torch.nn") for leaf in leaves)
    for mode in (False, True):  # the one that it was traced in does not stay in it
        found = []
        for one in (traced, model):
            torch.manual_seed(0)
            found.append(copy.deepcopy(one).train(mode)(images()))
        assert torch.equal(*found)


@pytest.mark.parametrize(("arrangement", "left"), [(ORIGINAL, 0), (FULL_PREACT, 4)])
def test_fx_and_ao_fold_what_stands_behind_a_convolution(arrangement, left):
    from torch.ao.quantization import fuse_modules

    model = lived(replace(BASIC, arrangement=arrangement))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization.quantize_fx import fuse_fx

        by_ao = fuse_fx(copy.deepcopy(model))
        by_name = fuse_modules(copy.deepcopy(model), [["stem.conv1", "stem.bn1", "stem.relu1"]])
    for folded, count in ((fuse_by_fx(model), left), (by_ao, left), (by_name, len(norms(model)) - 1)):
        assert len(norms(folded)) == count
        torch.testing.assert_close(folded(images()), model(images()))


def heard(model, x, kind):
    """How often each module is called in a step, by a hook of one kind on it."""
    calls = {}

    def listen(name, module):
        calls[name] = 0

        def count(*_):
            calls[name] += 1

        getattr(module, f"register_{kind}")(count)

    for name, module in model.named_modules():
        # An empty path gives what it takes, and has no gradient of its own.
        if type(module) is not nn.Sequential or len(module):
            listen(name, module)
    model(x).square().sum().backward()
    return calls


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
@pytest.mark.parametrize("way", ["plain", "fused", "evaluation", "recomputed"])
def test_a_hook_on_any_module_is_heard_once(kind, way):
    model = network(replace(BASIC, arrangement=FULL_PREACT), width=16).to(memory_format=torch.channels_last)
    if way == "fused":
        kernels.fuse(model)
    elif way == "evaluation":
        model.eval()
    elif way == "recomputed":
        model.set_grad_checkpointing()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "fused"):
        counts = heard(model, images().to(memory_format=torch.channels_last), kind)
    for name, count in counts.items():
        # Of what is computed again each computation is heard, as with PyTorch's own checkpoint.
        again = way == "recomputed" and "stage" in name and "." in name and kind != "full_backward_hook"
        assert count == 1 or (again and count == 2), name


def test_a_hook_on_a_stage_changes_what_comes_after():
    model = network().eval()
    with torch.no_grad():
        wanted = model.forward_head(model.final(model.stage2(2 * model.stage1(model.stem(images())))))
    model.stage1.register_forward_hook(lambda *args: 2 * args[-1])
    assert torch.equal(model(images()), wanted)


def test_stages_run_in_their_order_and_as_often_as_they_stand_there():
    model = network().eval()
    first, x = model.stage1, model.stem(images())
    del model.stage1
    model.stage1, model.stage2 = first, first
    assert torch.equal(model.forward_features(images()), model.final(first(first(x))))


def test_a_stage_in_another_place_is_called():
    model = network().eval()
    model.stage1 = nn.Sequential(model.stage1, nn.Dropout(0.5))
    model.set_grad_checkpointing()
    assert model.segments == {"stage2": (Segment(1),) * 2}
    assert torch.equal(model.train().eval()(images()), network().eval()(images()))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_stage_is_a_sequential_that_can_be_cut_and_prolonged(checkpointed):
    model = network()
    model.set_grad_checkpointing(checkpointed)
    wanted = 2 * model.stage1(images(2)[:, :1].expand(-1, 4, -1, -1))
    assert type(model.stage1[:1]) is type(model.stage1)
    assert list(model.stage1[:1]) == [model.stage1[0]]
    model.stage1.append(Double())
    assert torch.equal(model.stage1(images(2)[:, :1].expand(-1, 4, -1, -1)), wanted)
    assert model.num_active_units == {"stage1": 3, "stage2": 2}


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_resting_units_rest_in_their_stage():
    model = network()
    model.set_active_units(0.5)
    assert model.num_active_units == {"stage1": 1, "stage2": 1}
    with torch.no_grad():
        model.stage1[1].F.conv2.weight.fill_(float("nan"))
        assert model(images()).isfinite().all()
        assert not model.eval()(images()).isfinite().any()


@pytest.mark.slow
def test_torch_script_takes_every_unit():
    # In a process of its own: torch.jit knows its builtins by ids, which others' garbage may have had.
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPTED], check=True, cwd=Path(__file__).parent)


SCRIPTED = """
import torch
from test_pytorch_contract import UNITS, images, lived
from kilolayer.networks import FeatureNetwork
for unit in UNITS.values():
    for model in (lived(unit), FeatureNetwork(lived(unit), [0, 1]).eval()):
        torch.testing.assert_close(torch.jit.script(model)(images()), model(images()))
"""


def test_export_takes_a_free_batch():
    model = lived()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(images(7)), model(images(7)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("unit", ["original", "pre-activated"])
def test_checkpointing_compiles_whole_and_changes_nothing(unit, backend):
    model = network(UNITS[unit])
    other = copy.deepcopy(model)
    model.set_grad_checkpointing()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        for module in (compiled, other):
            module(images()).square().sum().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_features_are_those_of_the_stages():
    model = create_model("resnet8_cifar", features_only=True, out_indices=[0, 2]).eval()
    seen = []
    for index in (1, 3):
        stage = model.network.get_submodule(f"stage{index}")
        stage.register_forward_hook(lambda *args: seen.append(args[-1]))
    assert all(map(torch.equal, model(torch.randn(1, 3, 32, 32)), seen))
