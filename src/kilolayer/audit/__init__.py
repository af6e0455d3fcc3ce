"""The auditor: what any residual network is, and where it is not as the papers have it.

from kilolayer.audit import audit_model
report = audit_model(torchvision.models.resnet50(), "resnet50")
report.content.arrangement, report.nearest.identical, report.findings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.audit.audit_report import (
    AuditFinding,
    AuditReport,
    NearestNetwork,
    NetworkContent,
    StageContent,
)
from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.audit.model_audit import audit_model
    from kilolayer.audit.state_audit import audit_state

_WITH_TORCH = {
    "audit_model": "model_audit",
    "audit_state": "state_audit",
}

__getattr__, __dir__ = lazy_attributes(__name__, _WITH_TORCH)

__all__ = [
    "AuditFinding",
    "AuditReport",
    "NearestNetwork",
    "NetworkContent",
    "StageContent",
    "audit_model",
    "audit_state",
]
