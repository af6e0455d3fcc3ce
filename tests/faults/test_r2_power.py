"""R2: torn writes, and power cuts that lose what was not synchronised: names, data, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from crashes import Story, begun
from harness import Lab

from fault_counts import stride_of

Whole = tuple[str, bytes]


@pytest.fixture(scope="module", params=["from its beginning", "going on"])
def story(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("power")
    before = begun(lab, folder / "begun", 61) if request.param == "going on" else None
    return Story(lab, folder / "story", before, {})


def test_torn_writes(story: Story, whole: Whole, chosen: Callable[..., list[int]], count: Any) -> None:
    writes = [number for number, call in enumerate(story.calls) if call.what == "write"]
    wrong = {number: story.killed("torn", number, whole) for number in chosen(writes)}
    bad = {number: what for number, what in wrong.items() if what}
    print(bad)
    count("R2", tried=len(wrong), held=len(wrong) - len(bad), note="half of a write, then killed")


def test_power_cuts(story: Story, whole: Whole, request: pytest.FixtureRequest, count: Any) -> None:
    tried, bad = 0, {}
    for what, number, tree in story.found_after_power_cuts(stride_of(request.config)):
        wrong = story.after_power_cut(f"cut-{tried}", number, tree, whole)
        if wrong:
            bad[number, what] = wrong
        tried += 1
    print(bad)
    count("R2", tried=tried, held=tried - len(bad), note="different folders after a power cut")
