"""A harness that finds nothing proves nothing: known faults are planted, and each must be seen."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import SEAL
from crashes import Story
from harness import Lab, outcome
from seeded import FAULTS

Whole = tuple[str, bytes]


def kills(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    story = Story(lab, folder / "story", None, seeded)
    # Soon after a line of metrics, before the state that it belongs to.
    for number in (n + 3 for n, call in enumerate(story.calls) if call.other.endswith("metrics.jsonl")):
        yield story.killed("kill", number, whole)


def torn_writes(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    story = Story(lab, folder / "story", None, seeded)
    for number in (n for n, call in enumerate(story.calls) if call.what == "write"):
        yield story.killed("torn", number, whole)


def power_cuts(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    """Soon after a seal has its name."""
    story = Story(lab, folder / "story", None, seeded)
    named = [n for n, call in enumerate(story.calls) if call.what == "rename" and SEAL.fullmatch(call.other)]
    for number, (_, calls, tree) in enumerate(story.found_after_power_cuts(1)):
        if any(calls - 3 <= n < calls for n in named):
            yield story.after_power_cut(f"cut-{number}", calls, tree, whole)


def signals(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    ended = lab.bring_back(folder / "run", SIGNAL_AT_STEP=f"4:{int(signal.SIGTERM)}", **seeded)
    yield "" if ended.status == 143 else f"status {ended.status}"


def two_at_once(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    from test_r7_two import beside_one_that_is_halted

    (folder / "two").mkdir()
    yield beside_one_that_is_halted(lab, folder / "two" / "case" / "run", 40, whole, **seeded)


def poisons(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    ended = lab.bring_back(folder / "run", POISON="model.stem.bn1.running_var:4:inf", **seeded)
    yield "" if ended.status == 2 else f"status {ended.status}"


def flipped_bits(lab: Lab, whole: Whole, folder: Path, seeded: dict[str, str]) -> Iterator[str]:
    run = folder / "run"
    assert lab.bring_back(run, SIGNAL_AT_STEP="4:15", **seeded).status == 143
    state = max((run / "checkpoints").glob("*.safetensors"))
    content = bytearray(state.read_bytes())
    content[-997] ^= 1  # a bit of an exponent: one of a mantissa's last may change no weight
    state.write_bytes(content)
    ended = lab.bring_back(run, **seeded)
    yield "" if ended.status == 0 and outcome(run) == whole else "not identical"


Watch = Callable[[Lab, Whole, Path, dict[str, str]], Iterator[str]]

SEEN_BY: dict[str, Watch] = {
    "no_fsync": power_cuts,
    "in_place": torn_writes,
    "no_folder_fsync": power_cuts,
    "generators_not_restored": kills,
    "metrics_not_cut": kills,
    "seal_not_checked": flipped_bits,
    "tensors_after_the_seal": power_cuts,
    "signal_forgotten": signals,
    "no_lock": two_at_once,
    "not_checked_for_numbers": poisons,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_known_fault_is_seen(fault: str, lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    seen = next(filter(None, SEEN_BY[fault](lab, whole, tmp_path, {"SEEDED": fault})), "")
    print(seen)
    count("seeded", tried=1, held=int(bool(seen)), note=seen)


@pytest.mark.parametrize("watch", [signals, two_at_once, poisons, flipped_bits])
def test_what_sees_them_sees_nothing_where_nothing_is(
    watch: Watch, lab: Lab, whole: Whole, tmp_path: Path
) -> None:
    """The kills and power cuts are R1 and R2."""
    assert [*watch(lab, whole, tmp_path, {})] == [""]
