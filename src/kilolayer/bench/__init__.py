"""Speed and memory measured side by side: contestants that take turns, each in a process of its own.

found = race(contestants(["preact_resnet110_cifar", "timm:resnet50"]), Conditions(batch_size=64))
"""

from kilolayer.bench.contestant import Contestant, contestant
from kilolayer.bench.race import Conditions, race

__all__ = ["Conditions", "Contestant", "contestant", "race"]
