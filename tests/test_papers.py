"""The tables hold every figure that the papers print; a cell is an experiment or says why it is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
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
    omissions,
    p1,
    p2,
    px,
    reported_errors,
    tables,
)
from kilolayer.papers.experiments import IMAGES
from kilolayer.training import SGD, Experiment, Steps, Warmup, recipe_by_name
from kilolayer.units import (
    FULL_PREACT,
    ORIGINAL,
    Bottleneck,
    ExclusiveGate,
    Identity,
    Projection,
    ShortcutGate,
    Unit,
    ZeroPad,
)
from kilolayer.values import from_json, to_json

BUILDABLE = [cell for cell in cells() if cell.buildable]


def _printed() -> dict[tuple[str, str, str], str]:
    """The second transcription, tests/printed_figures.tsv: the printed text by table, row and column."""
    lines = (Path(__file__).parent / "printed_figures.tsv").read_text(encoding="utf-8").splitlines()
    figures = {}
    for line in lines:
        if not line.startswith("#"):
            table, column, rows = line.split("\t")
            for row in rows.split(" | "):
                name, _, figure = row.rpartition(": ")
                figures[table, name, column] = figure
    return figures


PRINTED = _printed()
CURVES = ("training curve", "layer responses")


def _as_printed(cell: Cell) -> str:
    return {20.0: "fail", 60.0: ">60"}.get(cell.published.above or 0.0, str(cell.published))


def _plan(cell: Cell) -> Plan:
    assert cell.plan is not None
    return cell.plan


def test_every_printed_figure_stands_in_its_place_with_its_digits() -> None:
    ours = {(cell.table, cell.row, cell.column): cell for cell in cells() if cell.metric not in CURVES}
    printed = {key: cell for key, cell in ours.items() if cell.in_paper}
    assert {key: _as_printed(cell) for key, cell in printed.items()} == PRINTED
    assert {_as_printed(cell) for key, cell in ours.items() if key not in PRINTED} == {""}
    curves = [cell for cell in cells() if cell.metric in CURVES]
    assert {_as_printed(cell) for cell in curves} == {""}
    assert len(curves) == 2 + 4 + 10 + 5 + 2 + 5 + 4 + 4


def test_figures_that_are_not_entered_are_named() -> None:
    left_out = {paper.label: {each.source for each in some} for paper, some in omissions().items()}
    assert {f"Table {number}" for number in range(7, 15)} < left_out["P1"]
    assert "Table 8" in left_out["PX"]
    assert "Table 5" in left_out["P2"]
    for paper, last in (("P1", 14), ("P2", 5), ("PX", 8)):
        entered = {table.source for table in tables() if table.paper.label == paper}
        assert {f"Table {number}" for number in range(1, last + 1)} <= entered | left_out[paper]
    assert all(each.reason and each.what for some in omissions().values() for each in some)


@pytest.mark.parametrize("paper", [p1, p2, px], ids=lambda paper: paper.__name__)
def test_every_table_of_a_paper_s_module_is_one_of_its_tables(paper: ModuleType) -> None:
    assert {id(value) for value in vars(paper).values() if isinstance(value, Table)} == {
        id(value) for value in paper.TABLES
    }
    assert set(paper.TABLES) <= set(tables())


def test_statistics_are_the_papers() -> None:
    assert str(find_table("p2-table-1").cells[1].published.statistic) == "median of 5 runs"
    assert str(find_table("px-table-7").cells[0].published.statistic) == "mean of 10 runs"
    assert str(find_table("p1-table-6").cell("ResNet-110", "error").published.statistic) == "best of 5 runs"
    assert str(find_table("p2-table-4").cell("ResNet-1202", "CIFAR-10").published.statistic) == "a single run"
    assert str(find_table("p2-table-1").cells[5].published) == "8.70"


def test_counts() -> None:
    everything, each = count_cells(), [count_cells(table.cells) for table in tables()]
    assert everything.cells == sum(counts.cells for counts in each) == len(PRINTED) + 36
    for counts in (everything, *each):
        assert counts.buildable + counts.literature_only + counts.not_here == counts.cells
        assert counts.exact + counts.other_origin + counts.departing == counts.buildable
    assert count_cells(find_table("p2-table-4").cells).literature_only == 14
    assert count_cells(find_table("px-table-6").cells).not_here == 16
    printed = count_cells(find_table("px-table-7").cells)
    assert (printed.exact, printed.other_origin, printed.departing, printed.beside) == (2, 4, 0, 4)


@pytest.mark.parametrize("cell", BUILDABLE, ids=lambda cell: cell.slug)
def test_every_planned_cell_builds_an_experiment_that_survives_json(cell: Cell) -> None:
    for one in cell_experiments(cell, seed=2):
        assert from_json(to_json(one), Experiment) == one
        assert (one.seed, one.network.depth) == (2, _plan(cell).depth)
        assert "proxy" not in one.recipe.name


def test_other_cells_say_why_they_have_no_experiment() -> None:
    for cell in cells():
        assert cell.buildable != bool(cell.reason)
    with pytest.raises(InputError, match="another architecture"):
        cell_experiment(find_table("p2-table-4").cell("NIN", "CIFAR-10"))


def test_what_kilolayer_cannot_do_yet_is_said() -> None:
    warmed_up = {"ResNet-110", "ResNet-1202", "plain-110"}
    for cell in BUILDABLE:
        departs = _plan(cell).data == "imagenet" or (cell.table[:2] == "p1" and cell.row in warmed_up)
        assert bool(cell.not_yet) == (departs and cell.counted is None), cell.slug
        assert not cell.not_yet or cell.not_yet in cell.remark
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
        ("px-table-7", "ResNeXt-29 (16×64d), released code", "CIFAR-10", 68_155_210),
        ("p2-table-1", "1×1 conv shortcut", "error", 1_826_202),
    ],
)
def test_networks_have_the_exact_sizes(name: str, row: str, column: str, parameters: int) -> None:
    assert _plan(find_table(name).cell(row, column)).network.parameters == parameters


def test_counted_figures_are_the_printed_ones() -> None:
    for cell in cells():
        if cell.counted is not None and "1001" not in cell.row:
            # 25,557,032 parameters are printed as 25.5M: cut, not rounded.
            last_digit = 10.0**-cell.published.digits
            assert cell.counted == pytest.approx(cell.reported, abs=last_digit), cell.slug


def test_one_layer_skip_is_36_units_a_stage() -> None:
    network = _plan(find_table("p2-table-3").cells[0]).network
    assert (network.depth, network.stages[0].units, network.unit.branch.layers) == (110, 36, 1)


def test_recipes_are_the_papers() -> None:
    p1 = {cell.row: cell_experiment(cell).recipe for cell in BUILDABLE if cell.table == "p1-table-6"}
    assert {name: one.name for name, one in p1.items()} == {
        "ResNet-20": "paper-v1", "ResNet-32": "paper-v1", "ResNet-44": "paper-v1", "ResNet-56": "paper-v1",
        "ResNet-110": "paper", "ResNet-1202": "paper", "plain-110": "paper",
    }  # fmt: skip
    printed, released = (cell_experiment(cell) for cell in find_table("px-table-7").cells[3:10:6])
    assert printed.network.unit.arrangement == FULL_PREACT
    assert released.network.unit.arrangement == ORIGINAL
    assert (printed.recipe.batch_size, released.recipe.batch_size) == (256, 128)
    assert [_plan(cell).origin for cell in find_table("px-table-7").cells[3:10:6]] == [
        "authors' README",
        "released code",
    ]
    of_released_code = find_table("p2-table-4").cell("pre-activation ResNet-1001, batch 64", "CIFAR-10")
    assert _plan(of_released_code).origin == "released code"
    assert cell_experiment(of_released_code).recipe == recipe_by_name("released", 50_000)
    imagenet = cell_experiment(find_table("p2-table-5").cells[0])
    assert (imagenet.recipe.iterations, imagenet.network.image_size) == (90 * 5004, 224)


# From the papers' texts and the released code: epochs, batch, epochs completed before each drop, Nesterov.
STATED = {
    "released": (200, 64, (80, 121), True),
    "resnext": (300, 128, (150, 225), True),
    "resnext-256": (300, 256, (150, 225), True),
    "resnext-released": (300, 128, (147, 222), True),
    "resnext-imagenet": (100, 256, (30, 60, 90), True),
    "imagenet": (90, 256, (30, 60), False),
}
# In iterations: length, batch, drops.
STATED_IN_STEPS = {"paper": (64_000, 128, (32_000, 48_000)), "paper-v1": (64_000, 128, (32_000, 48_000))}


def test_every_plan_s_schedule_is_the_one_its_origin_states() -> None:
    used = {plan.recipe for cell in BUILDABLE for plan in cell.plans}
    assert used <= {*STATED, *STATED_IN_STEPS}
    for cell in BUILDABLE:
        images = IMAGES[_plan(cell).data]
        recipe = cell_experiment(cell).recipe
        rate = recipe.rate.then if isinstance(recipe.rate, Warmup) else recipe.rate
        assert isinstance(rate, Steps)
        assert isinstance(recipe.optimizer, SGD)
        if recipe.name in STATED:
            epochs, batch, drops, nesterov = STATED[recipe.name]
            epoch = images // batch
        else:
            (epochs, batch, drops), nesterov, epoch = STATED_IN_STEPS[recipe.name], False, 1
        assert (recipe.iterations, recipe.batch_size) == (epochs * epoch, batch), cell.slug
        assert [at for at, _ in rate.drops] == [drop * epoch for drop in drops]
        divided = [0.1 / 10**power for power in range(1, len(drops) + 1)]
        assert [level for _, level in rate.drops] == pytest.approx(divided)
        assert (rate.start, recipe.optimizer.momentum, recipe.optimizer.nesterov) == (0.1, 0.9, nesterov)
        assert recipe.weight_decay == (5e-4 if cell.table == "px-table-7" else 1e-4)
        assert isinstance(recipe.rate, Warmup) == (recipe.name == "paper")


def test_px_divides_the_rate_three_times_on_imagenet() -> None:
    plans = [plan for table in px.TABLES for cell in table.cells for plan in cell.plans]
    assert {plan.recipe for plan in plans if plan.data == "imagenet"} == {"resnext-imagenet"}


def test_another_laboratory_stands_beside_the_cells_that_it_replicated() -> None:
    replicated = {
        (cell.table, cell.row, cell.column): [str(one.result) for one in cell.replications]
        for cell in cells()
        if cell.replications
    }
    of_110, of_164 = ["6.06", "6.150", "6.189"], ["5.64", "5.180", "5.820"]
    assert replicated == {
        ("p2-table-2", "full pre-activation", "ResNet-110"): of_110,
        ("p2-table-2", "full pre-activation", "ResNet-164"): of_164,
        ("p2-table-3", "CIFAR-10, ResNet-110", "full pre-activation"): of_110,
        ("p2-table-3", "CIFAR-10, ResNet-164", "full pre-activation"): of_164,
        ("p2-table-4", "pre-activation ResNet-164", "CIFAR-10"): of_164,
    }


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
    # PX printed figures of pre-activation units; the network of this name is the released code's.
    assert reported_errors("resnext29_8x64d_cifar") == []
    # PX's ResNet-50 has its stride on the 3×3, P1's on the 1×1: two networks of one name.
    assert {one.value for one in reported_errors("resnext50_1x64d")} == {23.9}
    assert {one.value for one in reported_errors("resnet50")} == {22.85, 20.74}
    assert reported_errors("resnet38_cifar") == []
    assert "recipe released" in " ".join(one.source for one in reported_errors("preact_resnet1001_cifar"))


def test_the_tables_are_read_without_torch_and_numpy() -> None:
    check = "import sys, kilolayer.papers as p; p.count_cells(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_columns_that_set_a_part_of_the_unit_are_named() -> None:
    table = find_table("p2-table-2")
    assert table.columns_that_set({"branch": Bottleneck()}) == ("ResNet-164",)
    assert table.columns_that_set({"unit": Unit(Bottleneck())}) == ("ResNet-164",)
    assert table.columns_that_set({"arrangement": FULL_PREACT}) == ()
    assert table.columns_that_set({"depth": 20}) == ()


def test_a_row_of_yours_that_no_network_can_have_is_refused() -> None:
    with pytest.raises(InputError, match="the row 'mine' in p1-table-6: "):
        find_table("p1-table-6").with_own_row("mine", {"depth": 21})
