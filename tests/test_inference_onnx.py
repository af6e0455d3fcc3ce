"""A network in an ONNX file computes what it did, and one in int8 nearly so."""

from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from kilolayer.errors import InputError, StorageError
from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    Aggregated,
    BatchNorm,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    Unit,
    Zero,
    ZeroPad,
)
from kilolayer.weights import onnx, openvino

UNITS = {
    "basic": BASIC,
    "pre-activation bottleneck": replace(BOTTLENECK, arrangement=FULL_PREACT, downsample=Projection()),
    "plain": replace(BASIC, h=Zero()),
    "gated": replace(BASIC, h=ExclusiveGate(-1.0, batch_norm=True)),
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "dropped out": replace(BASIC, h=Dropout(0.5)),
    "preactivated padding": replace(BASIC, arrangement=FULL_PREACT, downsample=ZeroPad("preactivated")),
    "paths": Unit(Aggregated(2, 32, form="split"), downsample=Projection()),
}


def lived(unit, seed=1):
    torch.manual_seed(seed)
    widths = (64, 128) if isinstance(unit.branch, Aggregated) else (4, 8)
    stages = (Stage(2, widths[0]), Stage(2, widths[1], 2))
    model = build(Network(Stem(4), stages, unit, image_size=8))
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def trained():
    """A few steps on images that a network can tell apart: each class has its own bright row."""
    torch.manual_seed(0)
    model = lived(replace(BASIC, arrangement=FULL_PREACT)).train()
    labels = torch.arange(256) % 8
    x = 0.3 * torch.randn(256, 3, 8, 8)
    x[torch.arange(256), :, labels] += 1.5
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval(), x, labels


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_an_exported_network_is_the_network_at_any_batch_size(unit, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, path = lived(unit), tmp_path / "network.onnx"
    assert onnx.export_onnx(model, torch.randn(2, 3, 8, 8), path) < 1e-4
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = model(x).numpy()
    found = onnx.onnx_file_session(path, 1)(x)
    numpy.testing.assert_allclose(found, expected, atol=1e-4 * numpy.abs(expected).max())


def test_the_network_that_is_exported_stays_as_it_was(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = lived(BASIC).double().train()
    onnx.export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "network.onnx")
    assert model.training
    assert next(model.parameters()).dtype == torch.float64


@pytest.mark.parametrize("write", [onnx.export_onnx, onnx.quantize_onnx])
def test_what_cannot_be_written_or_has_no_image_is_refused(write, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, x = lived(BASIC), torch.randn(2, 3, 8, 8)
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "n.onnx", "Not a directory")):
        with pytest.raises(StorageError, match=f"cannot write {path}: {why}"):
            write(model, x, path)
    for none in (x[:0], x[0]):
        with pytest.raises(InputError, match=r"is of shape .*; allowed: one or more images, N×C×H×W"):
            write(model, none, tmp_path / "n.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    write(model, x, tmp_path / "deep" / "n.onnx")
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["n.onnx"]


def test_no_image_to_check_on_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"check is of shape \(0, 3, 8, 8\)"):
        onnx.quantize_onnx(lived(BASIC), torch.ones(1, 3, 8, 8), tmp_path / "n.onnx", torch.ones(0, 3, 8, 8))


def test_in_int8_a_trained_network_names_the_same_classes(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, x, labels = trained()
    path = tmp_path / "int8.onnx"
    told = onnx.quantize_onnx(model, x[:128], path, x[128:])
    assert told.images == 128
    assert 0 < told.logit_error < 0.1
    assert told.same_class >= 97
    found = onnx.onnx_file_session(path, 1)(x[128:])
    with torch.no_grad():
        assert told == onnx.logit_agreement(found, onnx_fp32(model, x[128:], tmp_path))
    assert (torch.from_numpy(found).argmax(1) == labels[128:]).float().mean() > 0.9
    import onnx as package

    kinds = {node.op_type for node in package.load(str(path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds


def onnx_fp32(model, x, folder):
    path = folder / "fp32.onnx"
    onnx.export_onnx(model, x, path)
    return onnx.onnx_file_session(path, 1)(x)


@pytest.mark.slow
def test_openvino_runs_both_files(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    model, x, _ = trained()
    onnx.quantize_onnx(model, x, tmp_path / "int8.onnx")
    with torch.no_grad():
        exact = model(x).numpy()
    whole = openvino.openvino_session(model, x, 1, "fp32")(x)
    numpy.testing.assert_allclose(whole, exact, atol=1e-3 * numpy.abs(exact).max())
    told = onnx.logit_agreement(openvino.openvino_file_session(tmp_path / "int8.onnx", x, 1)(x), exact)
    assert told.logit_error < 0.15
    assert told.same_class >= 97


def test_agreement_is_counted_over_images():
    exact = numpy.array([[3.0, 4.0], [0.0, 0.0]])
    assert onnx.logit_agreement(exact, exact) == onnx.LogitAgreement(2, 0.0, 100.0)
    told = onnx.logit_agreement(numpy.array([[4.0, 3.0], [0.0, 0.0]]), exact)
    assert told.logit_error == pytest.approx(2**0.5 / 5)
    assert told.same_class == 50


def test_without_the_packages_one_line_says_what_to_install(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'kilolayer\[export\]'"):
        onnx.quantize_onnx(lived(BASIC), torch.zeros(1, 3, 8, 8), tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())
