"""The options that describe an experiment, in the groups that help shows; does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from kilolayer.cli.option_types import (
    NO_DEFAULT_SHOWN,
    NUMBER_OR_SPLIT,
    CompileChoice,
    Device,
    GraphChoice,
    KernelsChoice,
    MemoryFormatChoice,
    OptionalColumn,
    OptionalFile,
    OptionalFolder,
    OptionalName,
    OptionalNumber,
    OptionalSplit,
    OptionalText,
    OptionalWhole,
    OwnUnit,
    PrecisionChoice,
    Switch,
    Text,
    Whole,
    choice_option,
)
from kilolayer.data.config import Appearance, Normalization
from kilolayer.units.arrangement import ARRANGEMENTS

Patterns = Annotated[tuple[str, ...], arg(metavar="TEXT...", help_behavior_hint="")]
OwnRows = Annotated[tuple[str, ...], arg(metavar="NAME=FILE.py:UNIT...", help_behavior_hint="")]

RECIPE_NAMES = (
    "paper",
    "paper-v1",
    "released",
    "resnext",
    "resnext-256",
    "resnext-released",
    "resnext-imagenet",
    "imagenet",
    "short",
    "sprint",
    "finetune",
    "smoke",
)


@dataclass(frozen=True)
class UnitOptions:
    """Ablations: changes to the model's residual unit, y = h(x) + F(x), x' = f(y)."""

    arrangement: Annotated[str | None, choice_option(*ARRANGEMENTS), NO_DEFAULT_SHOWN] = None
    """Where BN and ReLU stand (Identity Mappings, Fig. 4)."""
    shortcut: OptionalText = None
    """h: identity, zero, projection, scaled:λ[,λ_F], dropout:P, exclusive_gate:BIAS or shortcut_gate:BIAS."""
    downsample: Annotated[
        Literal["zero_pad", "projection"] | None, choice_option("zero_pad", "projection"), NO_DEFAULT_SHOWN
    ] = None
    """What the shortcut does where the shape changes: option A or option B."""
    stride_on: Annotated[Literal["1x1", "3x3"] | None, choice_option("1x1", "3x3"), NO_DEFAULT_SHOWN] = None
    """Which convolution of a bottleneck has the stride."""
    dropout: OptionalNumber = None
    """Dropout between the two convolutions of a basic unit, as in wide networks."""
    unit: OwnUnit = None
    """A unit of your own, or a shortcut, branch or arrangement for the model's unit. The file's code runs.
    FILE.py is enough for a run that has the unit already."""


@dataclass(frozen=True)
class DataOptions:
    """What to train on."""

    data: Text = "digits"
    """{DATASETS} (digits come with the package), or a PATH: a CIFAR folder or archive, a folder
    with one folder of images per class, parquet."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    image_size: OptionalWhole = None
    """Resize to this many pixels a side; otherwise the images' own size, or 224 where they differ."""
    train: OptionalSplit = None
    """The split to train on, by its name in the data; A+B joins two. Otherwise the split named train."""
    test: OptionalSplit = None
    """The split to test on; otherwise the split named test, or the validation split without one."""
    validation: Annotated[str | None, NUMBER_OR_SPLIT, NO_DEFAULT_SHOWN] = None
    """How many training images to hold out, or the validation split; otherwise the data's own validation
    split if they have a test split too, or else a tenth. Curves show the validation error, and the test set
    is read once, for the final figure. 0 is the papers' protocol: train on all images, curves on the test
    set."""
    image_column: OptionalColumn = None
    """Parquet's column of images, where its name is unusual."""
    label_column: OptionalColumn = None
    """Parquet's column of labels, where its name is unusual."""
    subset: OptionalWhole = None
    """Train on only this many of the images."""
    appearance: Annotated[Appearance, choice_option("shown", "stored")] = "shown"
    """shown: images as a viewer shows them, rotated by their orientation tag, with their colour profile,
    transparency over white, and 16 bits scaled. stored: as the file stores them, as is usual for ImageNet."""
    skip_damaged: Switch = False
    """Leave out images that cannot be used, and say how many; otherwise they are an error."""


@dataclass(frozen=True)
class RecipeOptions:
    """How to optimise. These options change the named recipe (see: kilolayer recipes)."""

    recipe: Annotated[str, choice_option(*RECIPE_NAMES)] = "short"
    """The named recipe to start from."""
    epochs: OptionalWhole = None
    """Length in epochs; the learning-rate schedule keeps its proportions."""
    iterations: OptionalWhole = None
    """Length in steps, instead of --epochs."""
    batch_size: OptionalWhole = None
    """Images per step, over all processes; the number of epochs does not change."""
    lr: OptionalNumber = None
    """The peak learning rate; the whole schedule scales with it."""
    optimizer: Annotated[Literal["sgd", "adamw"] | None, choice_option("sgd", "adamw"), NO_DEFAULT_SHOWN] = (
        None
    )
    """sgd or adamw instead of the recipe's optimiser. From sgd to adamw the learning rate is divided by 100
    and the weight decay multiplied by 100, unless --lr and --weight-decay are given."""
    weight_decay: OptionalNumber = None
    """Weight decay."""
    trunk_lr: OptionalNumber = None
    """The learning rate of all but the classifier, as a share of the classifier's, from 0 to 1."""
    freeze_trunk: Switch = False
    """Train only the classifier, as with --trunk-lr 0; BN in the trunk keeps its running statistics."""
    no_flip: Switch = False
    """Do not flip images: for letters, signs, and anything that means something else in a mirror."""
    label_smoothing: OptionalNumber = None
    """The share of every label that is spread over all classes."""
    ema: OptionalNumber = None
    """Evaluate and save the running mean of the weights over about this share of the run; 0: the last
    weights."""
    progressive_resize: OptionalText = None
    """Sides of the training images as shares of the full side; each later one follows with @ and the share of
    the run from which it holds: 0.5,0.75@0.4,1@0.7. Evaluation uses the full size."""
    progressive_depth: OptionalText = None
    """Shares of every stage's units that are active, up to 1, in the same form: 0.33,0.67@0.4,1@0.7. The
    other units are identities and cost nothing."""


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how fast."""

    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    precision: PrecisionChoice = "auto"
    """auto is bf16 where the hardware supports it or our kernels compute most of the network, else fp32."""
    memory_format: MemoryFormatChoice = "auto"
    """The order of an image's dimensions in memory; auto is channels_last with bf16 and on a CPU, else
    channels_first."""
    compile: CompileChoice = "off"
    """Compile with torch.compile: each kind of unit once (units), so that the start does not take longer with
    depth, or the whole network (model, or --compile alone)."""
    cuda_graph: GraphChoice = "auto"
    """Replay each step as one CUDA graph; auto is off until we have measured it."""
    kernels: KernelsChoice = "auto"
    """fused computes whole residual units at once in bf16, on a CPU (built at first use) or with Triton on a
    GPU; auto is fused on a CPU that supports it, else plain."""
    activation_memory: Text = "fastest"
    """fastest recomputes nothing; balanced and smallest recompute units in the backward pass, once or twice,
    for a fraction of the memory; bytes such as 2GB choose the least recomputation that fits. Results do not
    change."""
    threads: OptionalWhole = None
    """CPU threads; results repeat bit for bit only with the same number."""


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of an experiment; `assemble_experiment` turns them into an `Experiment`."""

    model: OptionalName = None
    """A network's name (see: kilolayer models); otherwise preact_resnet20_cifar, or preact_resnet18 for
    images of 64 pixels or more."""
    seed: Whole = 0
    """Decides the initialisation, the order of the images, augmentation and dropout."""
    evaluate_every: Whole = 1
    """Epochs between two points of the curves."""
    unit: OmitArgPrefixes[UnitOptions] = UnitOptions()
    data: OmitArgPrefixes[DataOptions] = DataOptions()
    recipe: OmitArgPrefixes[RecipeOptions] = RecipeOptions()
    compute: OmitArgPrefixes[ComputeOptions] = ComputeOptions()


@dataclass(frozen=True)
class TrainingOptions(ExperimentOptions):
    """The options of an experiment that is trained in a run's folder."""

    out: OptionalFolder = None
    """The run's folder, new or empty; otherwise runs/MODEL-DATA-sSEED-XXXX."""
    resume: OptionalFolder = None
    """Continue the run in this folder with its settings; --data PATH names the new place of its data. auto:
    begin the run in --out, continue it there with the same settings, or do nothing if it is finished."""
    start_over: Switch = False
    """With --resume: begin the run anew; its states and figures are set aside under other names."""
    snapshots: Whole = 0
    """How many snapshots of the weights to keep, evenly spread over the epochs from the initialisation on
    (see: kilolayer analyse)."""
    init: OptionalFile = None
    """Begin from the weights of this file or run; otherwise from random weights. The classifier is new if the
    classes differ, and the stem is adapted to another number of channels; every other tensor must fit.
    Without --model the network and the size of the images are the file's."""
    explain: Switch = False
    """Print the choices for speed and memory with their reasons, measure three steps, and write nothing."""
    save_every: Whole = 300
    """Seconds between two saves of the state; it is saved at the end of every epoch too."""
    tensorboard: bool = find_spec("tensorboard") is not None
    """Write DIR/tensorboard too (on if TensorBoard is installed)."""


@dataclass(frozen=True)
class EvaluationDataOptions:
    """The labelled images to evaluate on."""

    data: OptionalText = None
    """{DATASETS} or a PATH with labelled images; otherwise the run's own test set."""
    part: OptionalText = None
    """test, validation, train, another SPLIT of the data, or all. Otherwise test for digits, CIFAR and the
    run's own data, and all for other data."""
    skip_unknown_classes: Switch = False
    """Leave out images of classes that the network does not have; otherwise they are an error."""
    skip_damaged: Switch = False
    """Leave out images that cannot be read; otherwise they are an error."""
    image_size: OptionalWhole = None
    """Resize to this many pixels a side; otherwise the network's own size."""
    appearance: Annotated[Appearance | None, choice_option("shown", "stored"), NO_DEFAULT_SHOWN] = None
    """Read images as a viewer shows them, or as the file stores them; otherwise as the run was trained, and
    as shown for a weights file."""
    image_column: OptionalColumn = None
    """Parquet's column of images, where its name is unusual."""
    label_column: OptionalColumn = None
    """Parquet's column of labels, where its name is unusual."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    normalization: Annotated[Normalization, choice_option("channel", "per_pixel_mean")] = "channel"
    """With --model and without --mean: how to normalise pixels by the statistics of the training images."""


@dataclass(frozen=True)
class AnalysisInputOptions:
    """The images to analyse with, and how many."""

    data: OptionalText = None
    """{DATASETS} or a PATH; otherwise the run's own data, and digits for all others."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    image_size: OptionalWhole = None
    """Resize the images to this many pixels a side."""
    batch_size: Whole = 32
    """How many training images to send through the network."""
    seed: Whole = 0
    """Decides the initialisation and which images are used."""
    seeds: Whole = 1
    """How many initialisations to measure, counted from --seed, where an analysis measures several."""
    units: tuple[str, ...] = ()
    """Which modules of FILE.py:CALLABLE are its residual units: names or patterns, as 'layer?.*', or one
    addition of a module that holds several, as 'blocks.3[1]'."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""


@dataclass(frozen=True)
class ReproductionOptions:
    """The runs of a reproduction, and where they are computed."""

    tables: Annotated[Positional[tuple[str, ...]], arg(metavar="[TABLE...]", help_behavior_hint="")] = ()
    """Tables, such as p2-table-1."""
    rows: Patterns = ()
    """Only rows whose name contains one of these, or matches it as a shell pattern."""
    columns: Patterns = ()
    """Only columns whose name contains one of these, or matches it as a shell pattern."""
    row: OwnRows = ()
    """A row of your own beside the paper's: a unit, shortcut, branch or arrangement of yours in the table's
    network, under this name. The file's code runs."""
    seeds: OptionalText = None
    """How many seeds (5: seeds 0 to 4), or which (0,3,7); otherwise as many as the paper ran."""
    data: OptionalText = None
    """The path of the images, or other images (see: kilolayer train --help); otherwise each table's own."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    recipe: Annotated[str | None, choice_option(*RECIPE_NAMES), NO_DEFAULT_SHOWN] = None
    """A recipe for all cells; otherwise each cell's own."""
    scale: Annotated[Literal["full", "proxy", "smoke"], choice_option("full", "proxy", "smoke")] = "full"
    """full: the paper's size. proxy: a size for a CPU, with 56 layers for 110, 16 × 16 pixels, 10,000 images
    and 624 iterations. smoke: seconds a run, to check that it works."""
    depths: OptionalText = None
    """Depths that replace the paper's, such as 110=56,164=83."""
    image_size: OptionalWhole = None
    """Pixels a side."""
    subset: OptionalWhole = None
    """Training images."""
    iterations: OptionalWhole = None
    """Training iterations; the schedule keeps its proportions."""
    batch_size: OptionalWhole = None
    """Images per step."""
    evaluate_every: OptionalWhole = None
    """Epochs between two points of the curves."""
    settings: Annotated[Literal["all", "first"], choice_option("all", "first")] = "all"
    """For a cell that stands for several settings (b_g = 0 ... -5): run all, or the first."""
    workers: OptionalWhole = None
    """Runs at a time; otherwise one per GPU, or per core."""
    cores: OptionalWhole = None
    """Cores of each run; otherwise an equal share, and 1 on a cluster. Results' last digits depend on it."""
    engine: Annotated[Literal["pool", "ray"], choice_option("pool", "ray")] = "pool"
    """pool: processes on this machine. ray: a Ray cluster."""
    address: OptionalText = None
    """HOST:PORT of the Ray cluster; otherwise this machine's cluster, or a new one for the sweep."""
    device: Device = "auto"
    """auto, cpu, cuda."""
    precision: PrecisionChoice = "auto"
    """auto is bf16 where the hardware has it, else fp32."""
    kernels: KernelsChoice = "auto"
    """fused computes whole residual units at once in bf16; auto is chosen as in train."""


TESTS = ("sign-flips", "paired-t")
SPENDINGS = ("obrien-fleming", "pocock")
RULE_FLAGS = ("--looks", "--test", "--spending", "--margin", "--fail-above")
"""What --register fixes beside the runs, and --amend may change."""


@dataclass(frozen=True)
class RegistrationOptions(ReproductionOptions):
    """A reproduction that may be registered before its first run."""

    register: Switch = False
    """Fix seeds, comparisons, test and stopping rule before the first run, in registration.json."""
    looks: OptionalText = None
    """With --register: the numbers of seeds after which undecided rows are looked at, such as 3,6,9."""
    test: Annotated[str | None, choice_option(*TESTS), NO_DEFAULT_SHOWN] = None
    """With --register: sign flips (the default), or the paired t test, which can decide after 3 seeds."""
    spending: Annotated[str | None, choice_option(*SPENDINGS), NO_DEFAULT_SHOWN] = None
    """With --register: obrien-fleming (the default) saves the 5 % for the last look, pocock shares it."""
    margin: OptionalNumber = None
    """With --register: rows that differ by less, in points of error, are equivalent; otherwise none are."""
    fail_above: OptionalNumber = None
    """With --register: a run with a higher test error, in percent, has failed. The paper's is 20."""
    amend: OptionalText = None
    """With --resume: change a registration, with the reason. It is recorded and shown."""


def changed_flags(options: Any) -> Iterator[str]:
    """The flags of the options that differ from their default, and the metavars of such arguments."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from changed_flags(value)
        elif value != field.default:
            yield "TABLE" if field.name == "tables" else f"--{field.name.replace('_', '-')}"
