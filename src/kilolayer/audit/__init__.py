"""The auditor: says what any residual network is, and where it differs from the papers.

>>> from kilolayer.audit import audit_model
>>> from kilolayer.networks import build, describe
>>> report = audit_model(build(describe("preact_resnet20_cifar")), "preact_resnet20_cifar")
>>> report.content.arrangement, report.nearest.identical, report.findings
('full_preactivation', True, ())
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
