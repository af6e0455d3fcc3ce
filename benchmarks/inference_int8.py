"""What int8, folded bf16 and fp32 cost in test error, on a trained network.

    python benchmarks/inference_int8.py [--data NAME] [--model NAME] [--epochs N] [--subset N] [--out FILE]

It trains the network (short recipe, one thread), folds it, exports it, quantises it on training images, and
runs the whole test set through every path. The int8 error of an untrained network means nothing, so the
training is part of the record. Writes results/inference-int8.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.__main__ import main as kilolayer
from kilolayer.bench.machine import describe_machine
from kilolayer.data import Images, load
from kilolayer.kernels.folding import fold
from kilolayer.runs.start_environment import current_command, environment_record
from kilolayer.runs.trained_network import TrainedNetwork, open_trained
from kilolayer.system import durable
from kilolayer.training import DistributedContext
from kilolayer.weights import onnx, openvino

HERE = DistributedContext(torch.device("cpu"))
CALIBRATION = 512
Logits = numpy.ndarray[Any, Any]


def train(options: argparse.Namespace, folder: str) -> None:
    words = ["train", "--model", options.model, "--data", options.data, "--epochs", str(options.epochs)]
    if options.subset:
        words += ["--subset", str(options.subset)]
    if kilolayer([*words, "--threads", "1", "--no-tensorboard", "--out", folder]):
        sys.exit("the training failed")


def paths(
    network: TrainedNetwork, training: Tensor, test: Tensor, folder: Path
) -> tuple[dict[str, Callable[[Tensor], Logits]], dict[str, Any]]:
    """Every way to compute the logits of normalised images, and the agreement that quantisation reports."""
    model = network.weights.model.eval()
    exact, rough, file = fold(model, torch.float32), fold(model, torch.bfloat16), folder / "int8.onnx"
    agreement = onnx.quantize_onnx(model, training[:CALIBRATION], file, test)
    onnx.export_onnx(model, test[:1], folder / "fp32.onnx")
    batch = test[: part(len(test))]
    return {
        "fp32, layer by layer": lambda x: model(x).numpy(),
        "fp32, folded": lambda x: exact(x).numpy(),
        "bf16, folded": lambda x: rough(x.bfloat16()).float().numpy(),
        "fp32, ONNX Runtime": onnx.onnx_file_session(folder / "fp32.onnx", 1),
        "OpenVINO, its own choice": openvino.openvino_file_session(folder / "fp32.onnx", batch, 1),
        "int8, ONNX Runtime": onnx.onnx_file_session(file, 1),
        "int8, OpenVINO": openvino.openvino_file_session(file, batch, 1),
    }, {"calibration_images": CALIBRATION, **vars(agreement)}


def part(images: int) -> int:
    """The number of images per part that makes all parts equal: OpenVINO compiles for one batch size."""
    return next(size for size in range(250, 0, -1) if images % size == 0)


def figures(logits: Logits, labels: Tensor, exact: Logits) -> dict[str, float]:
    outputs = torch.from_numpy(logits)
    agreement = onnx.logit_agreement(logits, exact)
    return {
        "test_error": 100 * (outputs.argmax(1) != labels).double().mean().item(),
        "test_loss": functional.cross_entropy(outputs.double(), labels).item(),
        "logit_error": agreement.logit_error,
        "same_class_as_fp32": agreement.same_class,
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data", default="digits")
    options.add_argument("--model", default="preact_resnet20_cifar")
    options.add_argument("--epochs", type=int, default=15)
    options.add_argument("--subset", type=int)
    options.add_argument("--out", type=Path, default=Path("results/inference-int8.json"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        with torch.enable_grad():
            train(asked, f"{folder}/run")
        network = open_trained(f"{folder}/run")
        record = measured(network, Path(folder))
    record["environment"]["command"] = current_command()
    before = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    durable.write_file(asked.out, json.dumps(before | {record["network"]: record}, indent=1).encode())
    return 0


def measured(network: TrainedNetwork, folder: Path) -> dict[str, Any]:
    assert network.experiment is not None  # noqa: S101 - it is a run
    splits = load(network.experiment.data)
    normalised: Callable[[Images], Tensor] = lambda images: network.weights.statistics.normalize(  # noqa: E731
        images.pixels
    )
    test, labels = normalised(splits.test), splits.test.labels
    ways, agreement = paths(network, normalised(splits.train[:CALIBRATION]), test, folder)
    parts = torch.split(test, part(len(test)))
    logits = {name: numpy.concatenate([way(part) for part in parts]) for name, way in ways.items()}
    exact = logits["fp32, layer by layer"]
    figures_by_way = {name: figures(each, labels, exact) for name, each in logits.items()}
    for name, each in figures_by_way.items():
        print(f"{name:26} error {each['test_error']:.2f} %, logits {100 * each['logit_error']:.2f} % off, "
              f"the same class for {each['same_class_as_fp32']:.2f} %")  # fmt: skip
    experiment = network.experiment
    return {
        "network": f"{experiment.network.depth} layers on {splits.name}",
        "trained": {"recipe": experiment.recipe.name, "images": len(splits.train),
                    "precision": experiment.precision, "kernels": experiment.kernels},
        "test_images": len(labels), "quantisation": agreement, "paths": figures_by_way,
        "environment": environment_record(HERE, "fp32"), "machine": describe_machine(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
