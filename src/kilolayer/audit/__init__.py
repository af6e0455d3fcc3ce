"""The auditor: what any residual network is, and where it is not as the papers have it.

from kilolayer.audit import audit_model
report = audit_model(torchvision.models.resnet50(), "resnet50")
report.content.arrangement, report.nearest.identical, report.findings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.audit.content import Audit, Content, Finding, FoundStage, Nearest
from kilolayer.lazy import lazily

if TYPE_CHECKING:
    from kilolayer.audit.auditing import audit_model
    from kilolayer.audit.state import audit_state

_WITH_TORCH = {"audit_model": "auditing", "audit_state": "state"}

__getattr__, __dir__ = lazily(__name__, _WITH_TORCH)

__all__ = ["Audit", "Content", "Finding", "FoundStage", "Nearest", "audit_model", "audit_state"]
