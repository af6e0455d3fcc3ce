"""Files written before this release's words for things are read as they were meant."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch

from kilolayer.data import Augmentation, Data
from kilolayer.data.config import ColorJitter, ResizedCrop
from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem
from kilolayer.runs import Run, read_weights
from kilolayer.runs.start_environment import environment_differences, environment_record
from kilolayer.sweep.reproduction import open_sweep, run_folder
from kilolayer.sweep.run_spec import read_progress
from kilolayer.training import (
    SGD,
    AdamW,
    DistributedContext,
    Experiment,
    OneCycle,
    ProgressiveDepth,
    ProgressiveResize,
    Recipe,
    Steps,
    Warmup,
)
from kilolayer.training.experiment import InitialWeights
from kilolayer.units import (
    AGGREGATED,
    ARRANGEMENTS,
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    Aggregated,
    Basic,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
    ZeroPad,
)
from kilolayer.values import from_json, to_json
from tiny_runs import PREACT, outcome, train

FIXTURES = Path(__file__).with_name("fixtures") / "old_words"

NETWORK = Network(Stem(4), (Stage(2, 4), Stage(2, 4, stride=2)), PREACT, in_chans=1, image_size=8)
SPARING = Recipe(
    "tiny",
    7,
    Warmup(0.01, 1, Steps(0.1, ((4, 0.01),))),
    16,
    optimizer=SGD(nesterov=True),
    decay="weights",
    label_smoothing=0.1,
    ema=0.5,
    progressive_resize=ProgressiveResize(0.5, ((0.5, 1.0),)),
    progressive_depth=ProgressiveDepth(0.5, ((0.5, 1.0),)),
    augmentation=Augmentation(pad=1, flip=False),
)
STOPPED = Experiment(
    NETWORK,
    Data(subset=50, validation=20),
    SPARING,
    memory_format="channels_last",
    activation_memory="balanced",
)
EVERY_FIELD = Experiment(
    NETWORK,
    Data(
        "pictures",
        folder="x",
        download=True,
        image_size=32,
        split_seed=1,
        subset=50,
        skip_damaged=True,
        appearance="stored",
        train="a+b",
        test="c",
        validation_split="val",
        image_column="image",
        label_column="label",
    ),
    Recipe(
        "tiny",
        7,
        Warmup(0.01, 1, Steps(0.1, ((4, 0.01),))),
        16,
        optimizer=AdamW((0.8, 0.99), 1e-7),
        decay="weights",
        label_smoothing=0.1,
        trunk_rate=0.5,
        ema=0.5,
        progressive_resize=ProgressiveResize(0.5, ((0.5, 1.0),)),
        augmentation=Augmentation(2, False, 3, ResizedCrop(), ColorJitter()),
        normalization="channel",
    ),
    seed=3,
    precision="bf16",
    memory_format="channels_last",
    graph=True,
    kernels="fused",
    evaluation="folded",
    activation_memory="2GB",
    evaluate_every=2,
    init=InitialWeights("weights.safetensors", "0" * 64, "file"),
)
UNITS = [
    BASIC,
    BOTTLENECK,
    AGGREGATED,
    ONE_LAYER,
    Unit(Basic(2, 0.3)),
    Unit(Aggregated(4, 64, "split", "1x1"), downsample=Projection()),
    Unit(Bottleneck(2, "1x1"), downsample=Projection()),
    Unit(h=Scaled(0.5, 0.25, "apply")),
    Unit(h=Zero()),
    Unit(h=Projection()),
    Unit(h=ExclusiveGate(-6.0, "skip", True)),
    Unit(h=ShortcutGate(-3.0, "apply", False)),
    Unit(h=Dropout(0.5, "skip")),
    Unit(downsample=ZeroPad("preactivated")),
    Unit(downsample=Projection()),
    *(Unit(arrangement=arrangement) for arrangement in ARRANGEMENTS.values()),
]


def test_every_field_of_an_experiment_is_read() -> None:
    text = (FIXTURES / "experiment_every_field.json").read_text()
    assert from_json(text, Experiment) == EVERY_FIELD


def test_a_one_cycle_schedule_is_read() -> None:
    text = (FIXTURES / "experiment_one_cycle.json").read_text()
    assert from_json(text, Experiment).recipe.rate == OneCycle(0.1, 7, 0.3)


def test_every_kind_of_unit_is_read() -> None:
    texts = json.loads((FIXTURES / "units.json").read_text())
    assert [from_json(json.dumps(text), Unit) for text in texts] == UNITS


def test_a_finished_run_is_read() -> None:
    run = Run.open(FIXTURES / "digits_run")
    assert run.experiment().network.depth == 8
    assert run.experiment().data == Data(subset=64, validation=20)
    (epoch,) = run.metrics()
    assert (epoch["iteration"], epoch["validation_error"]) == (2, 95.0)
    result = run.result()
    assert result is not None
    assert (result["status"], result["test_error_selected_on_validation"]) == ("done", 90.0)


def test_a_stopped_run_goes_on_to_the_end_it_would_have_had(tmp_path: Path) -> None:
    copytree(FIXTURES / "stopped_run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.experiment() == STOPPED
    here = environment_record(DistributedContext(torch.device("cpu")), "fp32", channels_last=True)
    made_here = not environment_differences(run.environments(), here | {"threads": torch.get_num_threads()})
    training = train(run.path, STOPPED)
    assert training.is_finished
    then = json.loads((FIXTURES / "stopped_run_outcome.json").read_text())
    now = outcome(run.path)
    if made_here:  # another processor computes other last digits
        assert now["metrics"] == then["metrics"]
    for old, new in zip(then["metrics"], now["metrics"], strict=True):
        assert old == pytest.approx(new, rel=1e-3)


def test_a_sweep_finds_its_runs() -> None:
    sweep = open_sweep(FIXTURES / "sweep")
    assert len(sweep.runs) == 2
    assert all(read_progress(planned).is_finished for planned in sweep.runs)
    folders = {run_folder(FIXTURES / "sweep" / "runs", planned.experiment) for planned in sweep.runs}
    assert folders == set((FIXTURES / "sweep" / "runs").iterdir())


def test_weights_are_read_and_their_checksum_holds() -> None:
    weights = read_weights(FIXTURES / "weights.safetensors")
    unit = weights.model.description.unit
    assert unit == Unit(
        h=Scaled(0.5, 0.25, "apply"), arrangement=FULL_PREACT, downsample=ZeroPad("preactivated")
    )


def test_a_changed_header_of_old_weights_is_seen(tmp_path: Path) -> None:
    content = (FIXTURES / "weights.safetensors").read_bytes()
    assert content.count(rb"[\"a\", \"b\"]") == 1
    changed = tmp_path / "weights.safetensors"
    changed.write_bytes(content.replace(rb"[\"a\", \"b\"]", rb"[\"a\", \"c\"]"))
    with pytest.raises(ValueError, match="is damaged"):
        read_weights(changed)


def test_a_field_under_both_of_its_names_is_an_error_that_says_so() -> None:
    text = to_json(Recipe("mine", 8, Steps(0.1)), indent=None).replace('"ema"', '"averaged": 0.1, "ema"')
    with pytest.raises(InputError, match="averaged and ema are one field, and both are given"):
        from_json(text, Recipe)
