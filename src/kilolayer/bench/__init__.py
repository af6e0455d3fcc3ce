"""Speed and memory measured side by side: contestants that take turns, each in a process of its own.

found = race(contestants(["preact_resnet110_cifar", "timm:resnet50"]), Conditions(batch_size=64))
"""

from kilolayer.bench.candidate import Candidate, parse_candidate
from kilolayer.bench.side_by_side import BenchConfiguration, compare_candidates

__all__ = ["BenchConfiguration", "Candidate", "compare_candidates", "parse_candidate"]
