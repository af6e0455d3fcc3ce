"""The options that describe an experiment, in the groups that help shows; does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes

from kilolayer.cli.option_types import (
    NO_DEFAULT_SHOWN,
    NUMBER_OR_SPLIT,
    CompileChoice,
    Device,
    GraphChoice,
    KernelsChoice,
    MemoryFormatChoice,
    OptionalColumn,
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
from kilolayer.data.config import Appearance
from kilolayer.units.arrangement import ARRANGEMENTS

RECIPE_NAMES = (
    "paper",
    "paper-v1",
    "released",
    "resnext",
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
    """Sides of the training images as shares of the full one, each with the share of the run from which it
    holds: 0.5,0.75@0.4,1@0.7. Evaluation is at full size."""
    progressive_depth: OptionalText = None
    """Shares of every stage's units that are at work, written alike, up to 1: 0.33,0.67@0.4,1@0.7. The others
    rest, as identities, and cost nothing."""


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
