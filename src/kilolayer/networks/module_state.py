"""The state of modules that change in their own forward pass, so that a second pass can begin as the first.

PyTorch's batch normalisation needs none of this: `units.batch_norm_module` holds its running statistics
without a copy. A layer of somebody else may change any of its buffers, and read them in the same pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

KNOWN_PACKAGES = ("kilolayer", "torch")
"""Modules of these packages change nothing but buffers in their forward pass."""
MODULE_FIELDS = frozenset(vars(nn.Module()))
"""What every module has: its parameters, its children, its hooks."""


def changing_modules(*modules: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules below `modules` that may change in a forward pass: those to copy, and the BNs.

    A BN inside a foreign layer is to be copied, because that layer may read its running statistics.
    """
    to_copy: dict[nn.Module, None] = {}
    norms: dict[nn.Module, None] = {}

    def visit(module: nn.Module, in_foreign: bool) -> None:
        foreign = in_foreign or is_foreign(module)
        if isinstance(module, _BatchNorm) and not foreign:
            norms[module] = None
        elif foreign or any(buffer is not None for buffer in module._buffers.values()):
            to_copy[module] = None
        for child in module.children():
            visit(child, foreign)

    for module in modules:
        visit(module, False)
    return list(to_copy), [norm for norm in norms if norm not in to_copy]


def is_foreign(module: nn.Module) -> bool:
    """Whether the class of `module` belongs neither to kilolayer nor to PyTorch."""
    return type(module).__module__.partition(".")[0] not in KNOWN_PACKAGES


@dataclass(frozen=True)
class ModuleState:
    """The buffers of `module` at one moment; of a foreign module its attributes, too.

    Lists, dicts, sets and tensors among the attributes are copied, and no object inside them.
    """

    module: nn.Module
    buffers: dict[str, Tensor | None]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> ModuleState:
        """The present state of `module`."""
        attributes = _copied(vars(module)) if is_foreign(module) else {}
        return cls(module, _copied(module._buffers), attributes)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within it, the module has this state; afterwards it has the objects that it had before."""
        attributes, buffers = vars(self.module), self.module._buffers
        attributes_outside, buffers_outside = dict(attributes), dict(buffers)
        try:
            # Other objects, not other values: autograd may have saved the module's buffers.
            _replace(buffers, _copied(self.buffers))
            if self.attributes:
                _replace(attributes, _copied(self.attributes))
            yield
        finally:
            _replace(attributes, attributes_outside)
            _replace(buffers, buffers_outside)


@contextmanager
def restored(states: Sequence[ModuleState]) -> Iterator[None]:
    """Within it, every module has its state in `states`."""
    with ExitStack() as stack:
        for state in states:
            stack.enter_context(state.restored())
        yield


def _copied(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name in MODULE_FIELDS else _copy(value) for name, value in fields.items()}


def _copy(value: Any) -> Any:
    match value:
        case Tensor() if not value.requires_grad:
            return value.detach().clone()
        case list() | dict() | set():
            return copy.copy(value)
        case _:
            return value


def _replace(fields: dict[str, Any], values: dict[str, Any]) -> None:
    fields.clear()
    fields.update(values)
