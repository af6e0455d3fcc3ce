"""Adapts a state dict to another number of classes or channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kilolayer.data import InputStatistics
from kilolayer.system.message_text import listing, truncate

CLASSIFIER, STEM = "classifier.", "stem.conv1.weight"


@dataclass(frozen=True)
class AdaptedWeights:
    """The state for the network, and notes on what differs from the file."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def adapt_weights(
    state: Mapping[str, Tensor],
    model: nn.Module,
    *,
    classes: tuple[str, ...],
    file_classes: tuple[str, ...] | None = None,
) -> AdaptedWeights:
    """`state` with a classifier for `classes` and a stem for the channels of `model`.

    file_classes: the classes of the file, where it names them. A class of the same name then keeps its row of
        the classifier. The classifier is new (the model's own) where one of `classes` is not among them, or
        where only their number
    is known and it differs. For a network of one channel the weights of the stem are summed over three
    channels; for a network of three they are repeated and divided by 3, so that a grey picture gives the
    response that it gave. A tensor that fits in neither way stays as it is, and loading it is then an error.
    """
    model_state = model.state_dict()
    parts = (_classifier(state, model_state, classes, file_classes), _stem(state, model_state))
    adapted = dict(state)
    for part in parts:
        adapted |= part.state
    return AdaptedWeights(adapted, tuple(note for part in parts for note in part.notes))


def _classifier(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    classes: tuple[str, ...],
    file_classes: tuple[str, ...] | None,
) -> AdaptedWeights:
    new = {name: value for name, value in model_state.items() if name.startswith(CLASSIFIER)}
    file_tensors = {name: state[name] for name in new if name in state}
    if not any(name.startswith(CLASSIFIER) for name in state):
        return AdaptedWeights(
            new, (f"the classifier is new, for {len(classes):,} classes: the file has none",)
        )
    if file_tensors.keys() != new.keys() or any(
        file_tensors[name].shape[1:] != new[name].shape[1:] for name in new
    ):
        return AdaptedWeights({})
    rows = {len(value) for value in file_tensors.values()}
    if len(rows) > 1 or file_classes == classes:
        return AdaptedWeights({})
    if file_classes is not None and set(classes) <= set(file_classes):
        order = torch.tensor([file_classes.index(name) for name in classes])
        return AdaptedWeights(
            {name: value[order] for name, value in file_tensors.items()},
            (_note_on_rows(file_classes, classes),),
        )
    (count,) = rows
    if file_classes is None and count == len(classes):
        return AdaptedWeights({})
    return AdaptedWeights(new, (f"the classifier is new: {_change_note(count, file_classes, classes)}",))


def _note_on_rows(file_classes: tuple[str, ...], classes: tuple[str, ...]) -> str:
    if len(file_classes) == len(classes):
        return "the classifier's rows were put in the order of the data's classes, by name"
    return f"the classifier keeps the rows of {len(classes):,} of its {len(file_classes):,} classes, by name"


def _change_note(count: int, file_classes: tuple[str, ...] | None, classes: tuple[str, ...]) -> str:
    if file_classes is None or count != len(classes):
        return f"{count:,} → {len(classes):,} classes"
    return f"the file's classes are {_names(file_classes)}, the data's {_names(classes)}"


def _names(classes: tuple[str, ...]) -> str:
    return listing([truncate(name, 40) for name in classes], 3)


def _stem(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> AdaptedWeights:
    file_weight, model_weight = state.get(STEM), model_state.get(STEM)
    if (
        file_weight is None
        or model_weight is None
        or file_weight.ndim != 4
        or not file_weight.is_floating_point()
    ):
        return AdaptedWeights({})
    match file_weight.shape[1], model_weight.shape[1]:
        case 3, 1:
            return AdaptedWeights(
                {STEM: file_weight.float().sum(1, keepdim=True)},
                ("the stem's weights were summed over 3 channels",),
            )
        case 1, 3:
            return AdaptedWeights(
                {STEM: file_weight.float().repeat(1, 3, 1, 1) / 3},
                ("the stem's weights were repeated over 3 channels and divided by 3",),
            )
    return AdaptedWeights({})


def adapt_statistics(statistics: InputStatistics, *, in_chans: int, side: int) -> InputStatistics:
    """The same statistics for images of `in_chans` channels and `side` pixels a side.

    A mean image of another size becomes the mean of each channel. Several channels become one by their mean;
    one channel becomes several equal ones.
    """
    mean, scale = statistics.mean, statistics.scale
    if mean.shape[-1] not in (1, side):
        mean = mean.mean((1, 2), keepdim=True)
    if len(mean) != in_chans:
        mean, scale = (figure.mean(0, keepdim=True) for figure in (mean, scale))
        mean = mean.repeat(in_chans, 1, 1)
    return InputStatistics(mean, scale)
