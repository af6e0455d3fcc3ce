"""The laws that every analysis checks on the numbers at hand, and the refusal of a network that breaks one.

    y = h + F                         of every unit
    x_L = x_l + Σ F                   with Σ (h − x), Σ (f − y) and what stands between the units
    (J_h + J_F)ᵀ v = J_hᵀ v + J_Fᵀ v  the gradient's two terms and autograd's whole, of every unit
    ∂ε/∂x_0                           unit by unit, and by one backward pass through the whole model

A unit that was cut wrongly breaks one of them, and nothing is reported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.measure.scalars import norm

SUM_ROUNDINGS = 16
"""A sum may be off by this many roundings of its terms: its terms can be added in another order."""
GRADIENT_ROUNDINGS = 512
"""A gradient may be off by this many: either side adds up thousands of products in each layer."""


def refuse(unit: str, reason: str) -> InputError:
    """The refusal of a unit, by name, with what was seen."""
    return InputError(f"{unit!r} cannot be read exactly: {reason}")


def rounding(*tensors: Tensor) -> float:
    """The relative rounding of the coarsest arithmetic that made these tensors.

    >>> rounding(torch.zeros(1, dtype=torch.float64), torch.zeros(1)) == torch.finfo(torch.float32).eps
    True
    """
    eps = max(torch.finfo(tensor.dtype).eps for tensor in tensors)
    if any(tensor.is_cuda for tensor in tensors) and _may_use_tf32():
        eps = max(eps, 2.0**-10)
    return float(eps)


def _may_use_tf32() -> bool:
    return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def check_sum(unit: str, h: Tensor | None, F: Tensor, y: Tensor) -> None:
    """Checks y = h + F (P2, Eq. 1) to rounding. Raises `InputError`.

    >>> check_sum("stage1.0", torch.ones(2), torch.ones(2), torch.full((2,), 2.0))
    >>> check_sum("stage1.0", torch.ones(2), torch.ones(2), torch.ones(2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kilolayer.errors.InputError: 'stage1.0' cannot be read exactly: y = h + F is off by ...
    """
    total = F if h is None else h + F
    if torch.equal(total, y):
        return
    finite = total.isfinite() & y.isfinite()
    if not torch.equal(total.isfinite(), y.isfinite()):
        raise refuse(unit, "y = h + F is broken: one side is finite where the other is not")
    difference = torch.where(finite, total.double() - y.double(), 0.0)
    size = sum(norm(torch.where(finite, part, 0.0)) for part in (h, F) if part is not None)
    _compare(unit, "y = h + F", norm(difference), size, SUM_ROUNDINGS * rounding(F, y), "its terms'", y.dtype)


def check_stage(unit: str, missing: float, size: float, eps: float, dtype: torch.dtype) -> None:
    """Checks Eq. 4 with all that it leaves out: `missing` is what remains, `size` is Σ ‖F‖ + ‖y‖."""
    _compare(unit, "x_L = x_l + Σ F", missing, size, SUM_ROUNDINGS * eps, "its terms'", dtype)


def check_gradient(unit: str, shortcut: Tensor, branch: Tensor, total: Tensor) -> None:
    """Checks that the gradient's two terms are autograd's whole one. Raises `InputError`.

    >>> check_gradient("stage1.0", torch.ones(2), torch.ones(2), torch.full((2,), 2.0))
    """
    both = shortcut + branch
    if torch.equal(both, total) or not bool(total.isfinite().all()):
        return
    size = norm(shortcut) + norm(branch) + norm(total)
    allowed = GRADIENT_ROUNDINGS * rounding(total)
    _compare(unit, "direct + through the branch = whole gradient", norm(both.double() - total), size, allowed,
             "its terms'", total.dtype)  # fmt: skip


def check_whole_gradient(unit: str, by_units: Tensor, whole: Tensor) -> None:
    """Checks ∂ε/∂x_0, found unit by unit, against that of the whole model. Raises `InputError`.

    >>> check_whole_gradient("stage1.0", torch.ones(2), torch.ones(2))
    """
    if torch.equal(by_units, whole) or not bool(whole.isfinite().all()):
        return
    size = norm(by_units) + norm(whole)
    allowed = GRADIENT_ROUNDINGS * rounding(whole)
    _compare(unit, "the gradient at its input, found unit by unit, = that of the whole model",
             norm(by_units.double() - whole), size, allowed, "its", whole.dtype)  # fmt: skip


def _compare(
    unit: str, law: str, missing: float, size: float, allowed: float, of: str, dtype: torch.dtype
) -> None:
    if missing <= allowed * size:
        return
    share = missing / size if size else float("inf")
    raise refuse(
        unit,
        f"{law} is off by {share:.3g} of {of} size, where the rounding of "
        f"{str(dtype).rpartition('.')[2]} allows "
        f"{allowed:.2g}",
    )
