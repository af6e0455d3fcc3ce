"""Speed and memory measured side by side: candidates take turns, each in a process of its own.

from kilolayer.bench import BenchConfiguration, compare_candidates, parse_candidate

candidates = [parse_candidate(name) for name in ("preact_resnet110_cifar", "timm:resnet50")]
figures = compare_candidates(candidates, BenchConfiguration(batch_size=64))
"""

from kilolayer.bench.candidate import Candidate, parse_candidate
from kilolayer.bench.side_by_side import BenchConfiguration, compare_candidates

__all__ = ["BenchConfiguration", "Candidate", "compare_candidates", "parse_candidate"]
