"""Audits our own networks and those of torchvision, timm and pytorchcv, and writes results/audit-peers.json.

    python benchmarks/audit_peers.py [--out results/audit-peers.json] [--only 'timm/*' …]

Needs those libraries, so PyTorch's CUDA build (it runs on the CPU), and this package on the path. Every
network is freshly initialised, nothing is downloaded. `IDENTICAL` says which are known to be one of ours,
`FAULTS` which have a fault that their source confirms; of every other one a fault is a false one. `right`
says whether the audit told so. `--only` audits what matches LIBRARY/NAME, and keeps the rest of the file. A
row that the same code of the auditor has written is kept, so a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kilolayer.audit import AuditReport, audit_model
from kilolayer.errors import InputError
from kilolayer.networks import create_model, list_models
from kilolayer.runs.start_environment import environment_record, peak_memory_bytes
from kilolayer.training import DistributedContext

AUDITOR = Path(__file__).resolve().parents[1] / "src" / "kilolayer" / "audit"

# Two names of one function: ImageNet's default is option B, and ResNeXt's 1×64d is the bottleneck itself.
SAME = {
    "resnet18_b": "resnet18", "resnet34_b": "resnet34",
    "resnext50_1x64d": "resnet50", "resnext101_1x64d": "resnet101",
}  # fmt: skip

# The patterns of the names that are audited. What is left out beside them is only larger.
NAMES = {
    "kilolayer": ("*",),
    "torchvision": (
        "resnet*", "resnext*", "wide_resnet*", "alexnet", "vgg11*", "vgg16", "densenet121", "densenet169",
        "mobilenet_v*", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "shufflenet_v2_x0_5",
        "shufflenet_v2_x1_0", "squeezenet*", "googlenet", "inception_v3", "convnext_tiny", "regnet_?_400mf",
        "regnet_?_800mf", "swin_t", "swin_v2_t", "vit_b_16", "maxvit_t", "fcn_resnet50", "deeplabv3_resnet50",
        "lraspp*", "r3d_18", "mc3_18", "ssdlite*", "fasterrcnn_mobilenet_v3_large_320_fpn",
        "retinanet_resnet50_fpn", "keypointrcnn*", "raft_small",
    ),
    "timm": (
        "*resnet*", "*resnext*", "resnest*", "res2ne*", "cspres*", "vit_tiny_patch16_224", "mixer_s32_224",
        "hrnet_w18_small", "dla34", "ese_vovnet19b_dw", "coat_tiny", "xception41", "mobilevit_s",
        "deit_tiny_distilled*", "ghostnet_100", "regnetx_002", "densenet121", "repvgg_a0", "convnext_atto",
        "swin_tiny*", "efficientformer_l1", "poolformer_s12", "nf_regnet_b0",
    ),
    "pytorchcv": (
        "resnet*", "preresnet*", "resnext*", "seresnet*", "sepreresnet*", "wrn*", "ibn_res*", "bam_*",
        "cbam_*", "resnest*", "resneta*", "resnetd*", "pyramidnet110_a48*", "ror3_56*", "rir*", "diaresnet??",
        "sharesnet??", "resattnet56", "resdropresnet20*", "shakeshakeresnet20*", "shakedropresnet20*",
        "densenet40_k12_cifar10", "densenet121", "mobilenet_w1", "squeezenet_v1_0", "vgg11", "octresnet*",
        "inceptionresnetv1", "deeplabv3_resnetd50b_voc", "fcn8sd_resnetd50b_voc", "airnet50*", "diracnet18v2",
        "xdensenet40_2*", "condensenet*c4_g4", "lednet*", "unet*", "linknet*", "fishnet99", "darknet53",
    ),
}  # fmt: skip
TOO_LARGE = (
    "*200*", "*269*", "*270*", "*350*", "*420*", "*452*", "*1202*", "*resnet1001*", "*542*", "*272*",
    "*x64_*", "*x32d*", "*_152x*", "*101x3*", "*x16_*", "*201d*", "*_cifar100", "*_svhn", "*_cub",
    "*resnet152*b", "vit_base_*", "tresnet_*l", "*resnext101_64x4d", "*101*_bit",
)  # fmt: skip

# Known to be one of ours: found so, with no fault.
IDENTICAL: dict[str, dict[str, str]] = {
    "kilolayer": {name: SAME.get(name, name) for name in list_models()},
    "torchvision": {
        name: name
        for name in (
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
            "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2",
        )
    },
    "timm": {
        name: name
        for name in (
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
            "wide_resnet50_2",
        )
    },
    "pytorchcv": {
        "resnet20_cifar10": "resnet20_b_cifar", "resnet56_cifar10": "resnet56_b_cifar",
        "resnet110_cifar10": "resnet110_b_cifar", "resnet164bn_cifar10": "resnet164_cifar",
        "preresnet164bn_cifar10": "preact_resnet164_cifar", "wrn28_10_cifar10": "wide_resnet28_10_cifar",
        "resnext29_32x4d_cifar10": "resnext29_32x4d_cifar", "resnet50": "resnet50", "resnet18": "resnet18",
    },
}  # fmt: skip

# Known to have these faults, each confirmed in the network's source.
FAULTS: dict[str, dict[str, set[str]]] = {
    "timm": {f"resnetv2_{depth}": {"raw-stem"} for depth in (18, 34)},
    "pytorchcv": {f"preresnet{depth}_cifar10": {"raw-stem"} for depth in (20, 56, 110)}
    # The units of a stage share a convolution (Boulch 2017).
    | {f"sharesnet{depth}": {"function"} for depth in (18, 34, 50)},
}


def maker(library: str) -> Callable[[str], nn.Module]:
    """What makes a network of a library by its name, untrained."""
    if library == "kilolayer":
        return create_model
    if library == "torchvision":
        from torchvision import models

        return lambda name: models.get_model(name, weights=None, **_without_download(name))
    if library == "timm":
        import timm

        return lambda name: timm.create_model(name, pretrained=False)
    from pytorchcv.model_provider import get_model

    return lambda name: get_model(name, pretrained=False)


def _without_download(name: str) -> dict[str, Any]:
    """The options with which torchvision makes a network without fetching its backbone's weights."""
    if name in ("googlenet", "inception_v3"):
        return {"init_weights": False}
    parts = ("fcn_", "deeplabv3", "lraspp", "rcnn", "retinanet", "ssdlite")
    return {"weights_backbone": None} if any(part in name for part in parts) else {}


def names(library: str) -> list[str]:
    """The names of a library that `NAMES` chooses, without the too large ones."""
    if library == "kilolayer":
        return list_models()
    if library == "torchvision":
        from torchvision import models

        listed = models.list_models()
    elif library == "timm":
        import timm

        listed = timm.list_models()
    else:
        from pytorchcv.model_provider import _models as listed
    return [
        name
        for name in listed
        if any(fnmatchcase(name, pattern) for pattern in NAMES[library])
        and not any(fnmatchcase(name, pattern) for pattern in TOO_LARGE)
    ]


def code_hash() -> str:
    """The hash of the auditor's code."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(AUDITOR.glob("*.py")))).hexdigest()[
        :16
    ]


def row(library: str, name: str, make: Callable[[str], nn.Module]) -> dict[str, Any]:
    """One network's audit in short."""
    torch.manual_seed(0)
    try:
        model = make(name)
    except Exception as error:
        return {
            "name": name,
            "right": True,
            "not_made": f"{type(error).__name__}: {error}".partition("\n")[0],
        }
    start = time.perf_counter()
    try:
        report = audit_model(model, name)
    except InputError as error:
        return {"name": name, "right": True, "refused": str(error)}
    except Exception as error:
        return {"name": name, "right": False, "failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
    content, near = report.content, report.nearest
    return {
        "name": name,
        "right": told(report, library, name),
        "outcome": report.outcome,
        "structure": content.structure,
        "family": content.family,
        "arrangement": content.arrangement,
        "unit": content.branch,
        "shortcut": content.shortcut,
        "option": content.option,
        "depth": content.depth,
        "classes": content.classes,
        "outputs": content.outputs,
        "parameters": content.parameters,
        "nearest": near.name if near else None,
        "identical": bool(near and near.identical),
        "function": near.function if near else None,
        "reason": near.reason if near else None,
        "findings": [f"{finding.severity}: {finding.what} [{finding.where}]" for finding in report.findings],
        "unknown": report.unknown,
        "seconds": round(time.perf_counter() - start, 2),
    }


def told(report: AuditReport, library: str, name: str) -> bool:
    """Whether the audit named the known network and the known faults, and no fault besides."""
    expected = IDENTICAL.get(library, {}).get(name)
    near = report.nearest
    is_named = expected is None or (near is not None and bool(near.identical) and near.name == expected)
    faults = {finding.code for finding in report.findings if finding.severity == "fault"}
    is_clean_ours = library != "kilolayer" or not report.findings
    return is_named and is_clean_ours and faults == FAULTS.get(library, {}).get(name, set())


def rows(only: list[str], done: Callable[[str, str], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    for library in NAMES:
        try:
            make, listed = maker(library), names(library)
        except Exception as error:
            yield library, {"name": library, "right": False, "failed": f"{type(error).__name__}: {error}"}
            continue
        for name in listed:
            if any(fnmatchcase(f"{library}/{name}", pattern) for pattern in only) and not done(library, name):
                yield library, row(library, name, make)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/audit-peers.json"))
    parser.add_argument("--only", nargs="+", default=["*"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = (
        json.loads(options.out.read_text(encoding="utf-8"))
        if options.out.exists()
        else {"environments": [], "libraries": {}}
    )
    code = code_hash()
    found = {library: {each["name"]: each for each in rows} for library, rows in kept["libraries"].items()}
    place = DistributedContext(torch.device("cpu"))
    environments = [*kept["environments"], environment_record(place, "fp32")]

    def done(library: str, name: str) -> bool:
        return found.get(library, {}).get(name, {}).get("code") == code

    for number, (library, each) in enumerate(rows(options.only, done), 1):
        found.setdefault(library, {})[each["name"]] = each | {"code": code}
        failure = each.get("failed") or each.get("refused") or each.get("not_made")
        words = failure or (each["structure"] or each["nearest"], each["findings"])
        print("right" if each["right"] else "WRONG", library, each["name"], words, flush=True)
        if number % 5 == 0:
            write(options.out, environments, found, peak_memory_bytes(place))
    write(options.out, environments, found, peak_memory_bytes(place))


def write(
    out: Path, environments: list[Any], found: dict[str, dict[str, dict[str, Any]]], peak: int | None
) -> None:
    """Writes all rows, and their counts."""
    every = [each for networks in found.values() for each in networks.values()]
    audited = [each for each in every if "outcome" in each]
    peers = [
        each for library, networks in found.items() if library != "kilolayer" for each in networks.values()
    ]
    record = {
        "command": "python benchmarks/audit_peers.py --only 'torchvision/*' 'pytorchcv/*' 'timm/*'",
        "date": time.strftime("%Y-%m-%d"),
        "environments": environments,
        "networks": len(every),
        "audited": len(audited),
        "of_this_code": sum(each.get("code") == code_hash() for each in every),
        "audited_of_peers": sum("outcome" in each for each in peers),
        "outcomes": dict(Counter(each["outcome"] for each in audited)),
        "identical": sum(each["identical"] for each in audited),
        "right": sum(each["right"] for each in every),
        "refused": [each["name"] for each in every if "refused" in each],
        "tracebacks": [each["name"] for each in every if "failed" in each],
        "false_faults": [
            each["name"] for each in audited if not each["right"] and each["outcome"] == "faults"
        ],
        "peak_memory_bytes": peak,
        "libraries": {library: list(networks.values()) for library, networks in found.items()},
    }
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
