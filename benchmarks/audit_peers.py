"""Audits our own named networks and those of torchvision, timm and pytorchcv, and writes results/audit.json.

    python benchmarks/audit_peers.py [--out results/audit.json] [--only 'timm/*' …]

Needs those libraries, so PyTorch's CUDA build (it runs on the CPU), and this package on the path. Every
network is freshly initialised, nothing is downloaded. `EXPECTED` says, for each, the network of ours that
it is known to be, or the findings that its published definition must give; `right` says whether the audit
told so. About five minutes on one core; `--only` audits again what matches LIBRARY/NAME, and keeps the rest
of the file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kilolayer.audit import AuditReport, audit_model
from kilolayer.networks import create_model, list_models
from kilolayer.runs.start_environment import environment_record, peak_memory_bytes
from kilolayer.training import DistributedContext

# Two names of one function: ImageNet's default is option B, and ResNeXt's 1×64d is the bottleneck itself.
SAME = {
    "resnet18_b": "resnet18", "resnet34_b": "resnet34",
    "resnext50_1x64d": "resnet50", "resnext101_1x64d": "resnet101",
}  # fmt: skip

# A name of ours: must be found identical in function, with no finding. A set of codes: findings that must be
# told, with no other fault.
EXPECTED: dict[str, dict[str, str | set[str]]] = {
    "kilolayer": {name: SAME.get(name, name) for name in list_models()},
    "torchvision": {
        "resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50", "resnet101": "resnet101",
        "resnet152": "resnet152", "resnext50_32x4d": "resnext50_32x4d",
        "resnext101_32x8d": "resnext101_32x8d", "resnext101_64x4d": "resnext101_64x4d",
        "wide_resnet50_2": "wide_resnet50_2", "wide_resnet101_2": "wide_resnet101_2",
        "vgg11_bn": {"no-residual-addition"}, "densenet121": {"no-residual-addition"},
        "mobilenet_v2": {"unit"}, "convnext_tiny": {"unit"},
    },
    "timm": {
        "resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50", "resnet101": "resnet101",
        "resnext50_32x4d": "resnext50_32x4d", "wide_resnet50_2": "wide_resnet50_2",
        "resnet18d": {"stem", "layer"}, "resnet26": set(), "resnet50d": {"stem", "layer"},
        "seresnet50": {"layer"}, "resnetv2_50": {"unit"}, "resnetv2_50x1_bit": {"layer"},
        "vit_tiny_patch16_224": {"unit"},
    },
    "pytorchcv": {
        "resnet20_cifar10": {"option-b"}, "resnet110_cifar10": {"option-b"},
        "resnet164bn_cifar10": "resnet164_cifar", "preresnet20_cifar10": {"raw-stem", "option-b"},
        "preresnet110_cifar10": {"raw-stem", "option-b"}, "preresnet164bn_cifar10": "preact_resnet164_cifar",
        "preresnet1001_cifar10": "preact_resnet1001_cifar",
        "resnext29_32x4d_cifar10": "resnext29_32x4d_cifar",
        "wrn28_10_cifar10": "wide_resnet28_10_cifar", "seresnet20_cifar10": {"layer"}, "resnet50": "resnet50",
        "preresnet18": {"activated-twice"}, "preresnet50": {"unit"},
        "densenet40_k12_cifar10": {"no-residual-addition"},
    },
}  # fmt: skip


def maker(library: str) -> Callable[[str], nn.Module]:
    """What makes a network of a library by its name, untrained."""
    if library == "kilolayer":
        return create_model
    if library == "torchvision":
        from torchvision import models

        return lambda name: models.get_model(name, weights=None)
    if library == "timm":
        import timm

        return lambda name: timm.create_model(name, pretrained=False)
    from pytorchcv.model_provider import get_model

    return lambda name: get_model(name, pretrained=False)


def row(name: str, expected: str | set[str], make: Callable[[str], nn.Module]) -> dict[str, Any]:
    """One network's audit in short."""
    torch.manual_seed(0)
    model = make(name)
    start = time.perf_counter()
    try:
        report = audit_model(model, name)
    except Exception as error:
        return {"name": name, "right": False, "failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
    content, near = report.content, report.nearest
    return {
        "name": name,
        "expected": expected if isinstance(expected, str) else sorted(expected),
        "right": told(report, expected),
        "family": content.family,
        "arrangement": content.arrangement,
        "unit": content.branch,
        "shortcut": content.shortcut,
        "option": content.option,
        "depth": content.depth,
        "parameters": content.parameters,
        "nearest": near.name if near else None,
        "identical": bool(near and near.identical),
        "findings": [f"{each.severity}: {each.what}" for each in report.findings],
        "seconds": round(time.perf_counter() - start, 2),
    }


def told(report: AuditReport, expected: str | set[str]) -> bool:
    """Whether the audit named the network, or all the findings expected and no fault besides."""
    if isinstance(expected, str):
        same = report.nearest is not None and report.nearest.identical
        return same and report.nearest.name == expected and not report.findings
    faults = {each.code for each in report.findings if each.severity == "fault"}
    return expected <= {each.code for each in report.findings} and faults <= expected


def rows(only: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for library, networks in EXPECTED.items():
        try:
            make = maker(library)
        except Exception as error:
            yield library, {"name": library, "right": False, "failed": f"{type(error).__name__}: {error}"}
            continue
        for name, expected in networks.items():
            if any(fnmatchcase(f"{library}/{name}", pattern) for pattern in only):
                yield library, row(name, expected, make)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/audit.json"))
    parser.add_argument("--only", nargs="+", default=["*"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = options.out.exists() and options.only != ["*"]
    kept = (
        json.loads(options.out.read_text(encoding="utf-8"))
        if before
        else {"environments": [], "libraries": {}}
    )
    found = {library: {each["name"]: each for each in rows} for library, rows in kept["libraries"].items()}
    for library, each in rows(options.only):
        found.setdefault(library, {})[each["name"]] = each
        words = each.get("failed") or each["nearest"] or each["findings"][:1]
        print("right" if each["right"] else "WRONG", library, each["name"], words, flush=True)
    place = DistributedContext(torch.device("cpu"))
    every = [each for networks in found.values() for each in networks.values()]
    record = {
        "environments": [*kept["environments"], environment_record(place, "fp32")],
        "networks": len(every),
        "right": sum(each["right"] for each in every),
        "peak_memory_bytes": peak_memory_bytes(place),
        "libraries": {library: list(networks.values()) for library, networks in found.items()},
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
