"""The tables hold every figure of FACTS.md, and every cell is an experiment or says why it is none."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.papers import (
    Cell,
    Plan,
    Table,
    cell_experiment,
    cell_experiments,
    cells,
    count_cells,
    find_table,
    p1,
    p2,
    px,
    reported_errors,
    tables,
)
from kilolayer.training import SGD, Experiment
from kilolayer.units import ExclusiveGate, Identity, Projection, ShortcutGate, ZeroPad
from kilolayer.values import from_json, to_json

BUILDABLE = [cell for cell in cells() if cell.buildable]

# Written down from FACTS.md apart from the tables: name, then every figure in reading order, "fail" or >60.
FACTS: dict[str, list[object]] = {
    "p2-table-1": [6.61, "fail", "fail", 12.35, "fail", 8.70, 9.81, 12.86, 6.91, 12.22, "fail"],
    "p2-table-2": [6.61, 5.93, 8.17, 6.50, 7.84, 6.14, 6.71, 5.91, 6.37, 5.46],
    "p2-table-3": [9.90, 8.91, 6.61, 6.37, 5.93, 5.46, 7.61, 4.92, 25.16, 24.33, 27.82, 22.71],
    "p2-table-4": [
        *(8.81, 35.68, 8.22, 34.57, 8.39, 35.04, 7.72, 32.39, 7.25, 33.71, 6.55, 24.28, 5.84, 27.66),
        *(6.61, 1.7, 25.16, 27.82, 7.93, 19.4, 5.46, 24.33, 1.7, 4.92, 22.71, 10.2, 4.62),
    ],
    "p2-table-5": [
        *(23.0, 6.7, 21.3, 5.5, 21.1, 5.5, 21.8, 6.0, 20.7, 5.3, 20.1, 4.8),
        *(21.2, 5.6, 20.0, 5.0, 19.9, 4.9),
    ],
    "p2-text-resnet-101": [23.6, 7.1, 24.6, 7.5],
    "p2-figure-1": [None] * 2,
    "p2-figure-3": [None] * 5,
    "p2-figure-6": [None] * 4,
    "p1-table-2": [27.94, 27.88, 28.54, 25.03],
    "p1-table-3": [28.54, 25.03, 7.76, 24.52, 7.46, 24.19, 7.40, 22.85, 6.71, 21.75, 6.05, 21.43, 5.71],
    "p1-table-4": [21.84, 5.71, 21.53, 5.60, 20.74, 5.25, 19.87, 4.60, 19.38, 4.49],
    "p1-table-5": [3.57],
    "p1-table-6": [8.75, 7.51, 7.17, 6.97, 6.43, 7.93, ">60"],
    "p1-figure-6": [None] * 10,
    "p1-figure-7": [None] * 5,
    "px-table-1": [25.5, 4.1, 25.0, 4.2],
    "px-table-2": [64, 40, 24, 14, 4],
    "px-table-3": [23.9, 22.0, 23.0, 21.7, 22.6, 21.4, 22.3, 21.3, 22.2, 21.2],
    "px-table-4": [22.0, 21.2, 21.7, 5.8, 21.3, 5.7, 20.7, 5.5, 20.4, 5.3],
    "px-table-5": [22.0, 21.7, 5.8, 20.4, 5.3, 19.1, 4.4],
    "px-text-shortcuts": [23.9, 31.2, 22.2, 26.1],
    "px-table-7": [3.65, 17.77, 3.58, 17.31],
}

SPREADS = {(6.43, 6.61, 0.16), (4.92, 4.89, 0.14), (4.62, 4.69, 0.20), (22.71, 22.68, 0.22)}


def _figure(cell: Cell) -> object:
    above = cell.published.above
    return cell.reported if above is None else {20.0: "fail", 60.0: ">60"}[above]


def _plan(cell: Cell) -> Plan:
    assert cell.plan is not None
    return cell.plan


@pytest.mark.parametrize("name", FACTS)
def test_every_figure_of_the_facts_stands_in_its_place(name: str) -> None:
    assert [_figure(cell) for cell in find_table(name).cells] == FACTS[name]


@pytest.mark.parametrize("paper", [p1, p2, px], ids=lambda paper: paper.__name__)
def test_every_table_of_a_paper_s_module_is_one_of_its_tables(paper: ModuleType) -> None:
    assert {id(value) for value in vars(paper).values() if isinstance(value, Table)} == {
        id(value) for value in paper.TABLES
    }
    assert set(paper.TABLES) <= set(tables())


def test_means_and_spreads_stand_beside_their_medians() -> None:
    facts = [cell for name in FACTS for cell in find_table(name).cells]
    spreads = {(cell.reported, cell.published.mean, cell.std) for cell in facts if cell.std is not None}
    assert spreads == SPREADS


def test_statistics_are_the_papers() -> None:
    assert str(find_table("p2-table-1").cells[1].published.statistic) == "median of 5 runs"
    assert str(find_table("px-table-7").cells[0].published.statistic) == "mean of 10 runs"
    assert str(find_table("p1-table-6").cell("ResNet-110", "error").published.statistic) == "best of 5 runs"
    assert str(find_table("p2-table-4").cell("ResNet-1202", "CIFAR-10").published.statistic) == "a single run"
    assert str(find_table("p2-table-1").cells[5].published) == "8.70"


def test_counts() -> None:
    everything, each = count_cells(), [count_cells(table.cells) for table in tables()]
    assert everything.cells == sum(counts.cells for counts in each) >= sum(map(len, FACTS.values()))
    assert everything.buildable + everything.literature_only == everything.cells
    assert count_cells(find_table("p2-table-4").cells).literature_only == 14


@pytest.mark.parametrize("cell", BUILDABLE, ids=lambda cell: cell.slug)
def test_every_planned_cell_builds_an_experiment_that_survives_json(cell: Cell) -> None:
    for one in cell_experiments(cell, seed=2):
        assert from_json(to_json(one), Experiment) == one
        assert (one.seed, one.network.depth) == (2, _plan(cell).depth)
        assert "proxy" not in one.recipe.name


def test_other_cells_are_literature_only_and_say_why() -> None:
    for cell in cells():
        assert cell.buildable != bool(cell.reason)
    with pytest.raises(InputError, match="another architecture"):
        cell_experiment(find_table("p2-table-4").cell("NIN", "CIFAR-10"))


def test_what_kilolayer_cannot_do_yet_is_said() -> None:
    for cell in BUILDABLE:
        assert bool(cell.not_yet) == (_plan(cell).data == "imagenet" and cell.counted is None)
    assert "ten crops" in find_table("p1-table-2").cells[0].not_yet
    assert "320" in find_table("p2-table-5").cell("ResNet-152, original @320", "top-1").not_yet


def test_slugs_name_cells_apart() -> None:
    slugs = [cell.slug for cell in cells()]
    assert len(set(slugs)) == len(slugs)
    assert all(slug.isascii() and "/" not in slug and " " not in slug for slug in slugs)


def test_table_1_changes_nothing_but_the_shortcut() -> None:
    original, *others = find_table("p2-table-1").cells
    base = cell_experiment(original)
    assert len(others) == 10
    assert (base.network.depth, base.network.parameters, base.network.unit.h) == (110, 1_727_962, Identity())
    for cell in others:
        for one in cell_experiments(cell):
            assert one.recipe == base.recipe
            unit = one.network.unit
            assert unit.h != base.network.unit.h
            assert (unit.branch, unit.arrangement) == (
                base.network.unit.branch,
                base.network.unit.arrangement,
            )
            assert unit.downsample == (Projection() if unit.h == Projection() else ZeroPad())


def test_one_row_of_table_1_stands_for_six_biases() -> None:
    cell = find_table("p2-table-1").cell("exclusive gating: b_g = 0 … −5", "error")
    assert (cell.failed, cell.reported) == (True, None)
    assert [plan.unit.h for plan in cell.plans] == [ExclusiveGate(-float(b)) for b in range(6)]
    assert [plan.setting for plan in cell.plans][::5] == ["b_g = 0", "b_g = −5"]
    with pytest.raises(InputError, match="from 0 to 5"):
        cell_experiment(cell, setting=6)


def test_gates_of_table_1() -> None:
    gates = [_plan(cell).unit.h for cell in find_table("p2-table-1").cells[5:9]]
    assert gates == [ExclusiveGate(-6.0), ExclusiveGate(-7.0), ShortcutGate(0.0), ShortcutGate(-6.0)]


@pytest.mark.parametrize(
    ("name", "row", "column", "parameters"),
    [
        ("p2-table-2", "original", "ResNet-164", 1_704_154),
        ("p2-table-2", "full pre-activation", "ResNet-164", 1_703_258),
        ("p2-table-3", "CIFAR-10, ResNet-1001", "original", 10_328_602),
        ("p2-table-3", "CIFAR-100, ResNet-1001", "full pre-activation", 10_350_836),
        ("p2-table-3", "CIFAR-100, ResNet-164", "full pre-activation", 1_726_388),
        ("p1-table-6", "ResNet-20", "error", 269_722),
        ("p1-table-6", "ResNet-1202", "error", 19_421_274),
        ("p1-table-6", "plain-110", "error", 1_727_962),
        ("p1-table-3", "ResNet-34 B", "top-1", 21_797_672),
        ("p1-table-3", "ResNet-152", "top-1", 60_192_808),
        ("p2-table-5", "ResNet-152, pre-activation @320", "top-1", 60_185_128),
        ("px-table-3", "32×4d", "101 layers", 44_177_704),
        ("px-table-4", "ResNeXt-101 (64×4d)", "top-1", 83_455_272),
        ("px-table-7", "ResNeXt-29 (16×64d)", "CIFAR-10", 68_155_210),
        ("p2-table-1", "1×1 conv shortcut", "error", 1_826_202),
    ],
)
def test_networks_have_the_exact_sizes(name: str, row: str, column: str, parameters: int) -> None:
    assert _plan(find_table(name).cell(row, column)).network.parameters == parameters


def test_counted_figures_are_the_printed_ones() -> None:
    for cell in cells():
        if cell.counted is not None and "1001" not in cell.row:
            # 25,557,032 parameters are printed as 25.5M: cut, not rounded.
            assert cell.counted == pytest.approx(cell.reported, abs=0.1)


def test_one_layer_skip_is_36_units_a_stage() -> None:
    network = _plan(find_table("p2-table-3").cells[0]).network
    assert (network.depth, network.stages[0].units, network.unit.branch.layers) == (110, 36, 1)


def test_recipes_are_the_papers() -> None:
    p1 = {cell.row: cell_experiment(cell).recipe for cell in find_table("p1-table-6").cells}
    assert {name: one.name for name, one in p1.items()} == {
        "ResNet-20": "paper-v1", "ResNet-32": "paper-v1", "ResNet-44": "paper-v1", "ResNet-56": "paper-v1",
        "ResNet-110": "paper", "ResNet-1202": "paper", "plain-110": "paper",
    }  # fmt: skip
    small = cell_experiment(find_table("p2-table-4").cell("pre-activation ResNet-1001, batch 64", "CIFAR-10"))
    assert (small.recipe.batch_size, small.recipe.iterations) == (64, 64_000)
    resnext = cell_experiment(find_table("px-table-7").cells[0]).recipe
    assert (resnext.weight_decay, resnext.batch_size, resnext.iterations) == (5e-4, 128, 300 * 390)
    imagenet = cell_experiment(find_table("p2-table-5").cells[0])
    assert (imagenet.recipe.iterations, imagenet.network.image_size) == (90 * 5004, 224)


def test_another_recipe_can_be_asked_for() -> None:
    cell = find_table("p2-table-3").cells[1]
    released = cell_experiment(cell, recipe_name="released").recipe
    assert (released.name, released.optimizer, released.batch_size) == ("released", SGD(nesterov=True), 64)
    with pytest.raises(InputError, match="unknown recipe"):
        cell_experiment(cell, recipe_name="nosuch")


def test_figures_reuse_the_experiments_of_tables() -> None:
    of_tables = {cell_experiment(cell) for cell in BUILDABLE if cell.table.startswith("p2-table")}
    for name in ("p2-figure-1", "p2-figure-3", "p2-figure-6"):
        assert {cell_experiment(cell) for cell in find_table(name).cells} <= of_tables


def test_data_may_lie_anywhere() -> None:
    one = cell_experiment(find_table("p2-table-1").cells[0], data=Data("/images/cifar", validation=5_000))
    assert (one.data.source, one.network.num_classes) == ("/images/cifar", 10)


def test_baselines() -> None:
    ablation, pairs = find_table("p2-table-2"), find_table("p2-table-3")
    assert ablation.baseline_of(ablation.cell("full pre-activation", "ResNet-164")) == ablation.cells[1]
    assert ablation.baseline_of(ablation.cells[0]) is None
    assert pairs.baseline_of(pairs.cells[1]) == pairs.cells[0]
    assert pairs.baseline_of(pairs.cells[0]) is None


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(InputError, match="nearest: p2-table-1"):
        find_table("p2-table1")


def test_reported_errors_compare_networks_not_names() -> None:
    values = {(one.value, one.data) for one in reported_errors("preact_resnet1001_cifar")}
    assert values == {(4.92, "cifar10"), (22.71, "cifar100"), (4.62, "cifar10")}
    assert {one.value for one in reported_errors("preact_resnet110_cifar")} == {6.37}
    assert {one.value for one in reported_errors("resnet110_c_cifar")} == {12.22}
    assert {one.value for one in reported_errors("plain34")} == {28.54}
    assert {one.value for one in reported_errors("resnext29_8x64d_cifar")} == {3.65, 17.77}
    # PX's ResNet-50 has its stride on the 3×3, P1's on the 1×1: two networks of one name.
    assert {one.value for one in reported_errors("resnext50_1x64d")} == {23.9}
    assert {one.value for one in reported_errors("resnet50")} == {22.85, 20.74}
    assert reported_errors("resnet38_cifar") == []
    assert "batch 64" in " ".join(one.source for one in reported_errors("preact_resnet1001_cifar"))


def test_the_tables_are_read_without_torch_and_numpy() -> None:
    check = "import sys, kilolayer.papers as p; p.count_cells(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
