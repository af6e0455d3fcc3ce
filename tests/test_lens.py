"""The lens: what one may pick, what is said of it, what is measured, and what is served."""

from __future__ import annotations

import re
import socket
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from kilolayer.__main__ import main
from kilolayer.errors import InputError
from kilolayer.measure.gradient import unit_gradient_norms
from kilolayer.networks import build
from kilolayer.report import page_assets
from kilolayer.report.lens.measurement import measure_lens_network
from kilolayer.report.lens.sentences import explain_shortcuts, unit_equation
from kilolayer.report.lens.settings import BRANCHES, OWN, SHORTCUTS, WORDS, LensSettings
from kilolayer.theory.mean_field import predict_propagation
from kilolayer.units import BASIC, ZeroPad, layout
from kilolayer.units import ops as op
from kilolayer.units.extensions import load_part
from test_report_page import Markup

if TYPE_CHECKING:
    from starlette.testclient import TestClient

SMALL = LensSettings(depth=20, width=4)


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"arrangement": "odd"}, "arrangement is 'odd'; allowed: original, "),
        ({"shortcut": ""}, "shortcut is ''; allowed: identity, zero, scaled, "),
        ({"depth": "111"}, "depth 111 is not 6n+2; nearest: 110, 116"),
        ({"depth": "110.5"}, "depth is '110.5', which is not a whole number"),
        ({"depth": "10000001"}, "depth is 10000001; allowed: 20 to 1001"),
        ({"scale": "nan"}, "scale is 'nan', which is not finite"),
        ({"scale": "1,5"}, "scale is '1,5', which is not a number"),
        ({"bias": "-1e9"}, r"bias is -1000000000.0; allowed: -10 to 10"),
        ({"p": "1"}, "p is 1.0; allowed: 0 to 0.95"),
        ({"width": "0"}, "width is 0; allowed: 4 to 16"),
        ({"colour": "red"}, "no parameter 'colour'; there are: arrangement, "),
    ],
)
def test_what_cannot_be_picked_is_one_line(words: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        LensSettings.from_query(words).network()


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("width", [4, 7, 16])
def test_a_choice_is_a_network_of_that_depth_and_width(branch: str, width: int) -> None:
    network = LensSettings(branch=branch, depth=20, width=width).network()
    assert network.depth == 20
    assert [stage.width for stage in network.stages] == [width, 2 * width, 4 * width]


def test_a_choice_is_read_from_an_address() -> None:
    assert LensSettings.from_query({}) == LensSettings()
    read = LensSettings.from_query({"shortcut": "exclusive_gate", "bias": "-6", "depth": "56"})
    assert read == replace(LensSettings(), shortcut="exclusive_gate", bias=-6.0, depth=56)


@pytest.mark.parametrize(
    "words", [*product(*(WORDS[name] for name in ("arrangement", "shortcut", "branch")))]
)
def test_the_equation_has_the_layers_that_the_unit_has(words: tuple[str, str, str]) -> None:
    arrangement, shortcut, branch = words
    unit = LensSettings(arrangement, shortcut, branch=branch).unit
    made = layout(unit, unit.branch.out_channels(16), 16)
    told = unit_equation(unit).partition("F(x) = ")[2]
    # An activation that both paths share is written in F.
    layers = made.p + made.F + made.f
    for kind, sign in ((op.Conv, r"W_\d"), (op.BatchNorm, "BN"), (op.ReLU, "ReLU")):
        assert len(re.findall(sign, told)) == sum(isinstance(layer, kind) for layer in layers)
    assert told.count("(") == told.count(")")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            LensSettings(shortcut="scaled", scale=0.9),
            "0.9^54 = 0.0034 of the signal passes the 54 shortcuts",
        ),
        (
            LensSettings(shortcut="scaled", scale=1.1),
            "1.1^54 = 172 of the signal passes the 54 shortcuts: it",
        ),
        (LensSettings(shortcut="scaled", scale=0.5), "0.5^54 = 5.6·10^{−17} of"),
        (LensSettings(shortcut="identity"), "1^54 = 1: the whole signal"),
        (
            LensSettings(shortcut="exclusive_gate", bias=-6),
            "1 − σ(−6) = 0.9975 of its shortcut: 0.9975^54 = 0.87 of",
        ),
        (LensSettings(shortcut="shortcut_gate", bias=0), "0.5^54 = 5.6·10^{−17} of"),
        (LensSettings(shortcut="dropout", p=0.5), "0.5^54 = 5.6·10^{−17} is the probability"),
        (LensSettings(shortcut="projection"), "the product of 54"),
        (LensSettings(shortcut="zero"), "There is no shortcut"),
        (LensSettings("original", "identity"), "But f = ReLU acts after every addition"),
        (LensSettings("bn_after_addition", "identity"), "But f = BN and ReLU acts after every addition"),
    ],
)
def test_it_is_said_in_a_plain_sentence(choice: LensSettings, said: str) -> None:
    network = choice.network()
    assert said in explain_shortcuts(network.unit, predict_propagation(network))


def test_a_clear_way_is_not_called_unclear() -> None:
    network = LensSettings(shortcut="identity").network()
    assert "But" not in explain_shortcuts(network.unit, predict_propagation(network))


@pytest.mark.parametrize("images", WORDS["images"])
def test_the_measured_gradient_is_that_of_the_analysis(images: str) -> None:
    """Against `unit_gradients`, which finds the same norms in another way."""
    from kilolayer.report.lens.measurement import _batch

    network = SMALL.network()
    found = measure_lens_network(network, images, never)
    assert found is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(network)
        x, labels = _batch(images, found.images)
        norms = unit_gradient_norms(model, x, labels)
    assert len(found.gradient) == len(found.signal) == len(norms) + 1
    assert found.gradient[-1] == 1
    first = [norm / norms[0] for norm in norms]
    assert [each / found.gradient[0] for each in found.gradient[:-1]] == pytest.approx(first, rel=1e-4)


def test_theory_and_measurement_tell_the_same() -> None:
    """A network is one more draw: means of logarithms differ by their standard error, pooled over both."""
    network = LensSettings(depth=56, width=16, scale=0.9).network()
    drawn = [predict_propagation(network, draws=1, seed=seed) for seed in range(8)]
    measured = [measure_lens_network(network, "noise", never, seed) for seed in range(4)]

    def gaps(kind: str) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor([getattr(each, kind) for each in side]).log() for side in (drawn, measured)]
        spread = sum(((row - row.mean(0)) ** 2).sum(0) for row in rows) / (8 + 4 - 2)
        return (rows[0].mean(0) - rows[1].mean(0)).abs(), (spread * (1 / 8 + 1 / 4)).sqrt()

    for kind in ("signal", "gradient"):
        gap, error = gaps(kind)
        inside = slice(None, -1)  # at x_L the gradient's ratio is 1 in every network
        assert (gap[inside] < 3 * error[inside]).all(), kind
        assert error.max() < 0.12, kind


@pytest.mark.parametrize("after", [0, 3, 12])
def test_a_measurement_that_nobody_waits_for_is_given_up(after: int) -> None:
    asked = iter(range(1000))
    assert measure_lens_network(SMALL.network(), "noise", lambda: next(asked) >= after) is None
    assert next(asked) == after + 1


def test_measuring_leaves_the_generator_of_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    measure_lens_network(SMALL.network(), "noise", never)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def client() -> TestClient:
    starlette = pytest.importorskip("starlette.testclient")
    from kilolayer.report.lens.app import application

    client: TestClient = starlette.TestClient(application(), base_url="http://127.0.0.1")
    return client


def test_the_page_offers_every_choice(client: TestClient) -> None:
    markup = Markup(client.get("/").text)
    options = {found["value"] for tag, found in markup.elements if tag == "option"}
    assert options == {word for words in WORDS.values() for word in words}
    named = {
        found["name"] for tag, found in markup.elements if tag in ("select", "input") and "name" in found
    }
    assert named == set(LensSettings.__dataclass_fields__) - {"user_part"}
    labelled = {found["for"] for tag, found in markup.elements if tag == "label"}
    assert labelled == named


OWN_UNITS = Path(__file__).parent.parent / "docs" / "how-to" / "own"


@pytest.mark.parametrize(
    ("reference", "setting"),
    [
        ("learned_scale.py:LearnedScale", "shortcut"),
        ("squeeze_excite.py:SqueezeExcite", "branch"),
        ("group_norm.py:PREACT", "arrangement"),
        ("stochastic_depth.py:StochasticDepth", "branch"),
    ],
)
def test_a_part_of_ones_own_is_offered_measured_and_not_predicted(reference: str, setting: str) -> None:
    starlette = pytest.importorskip("starlette.testclient")
    from kilolayer.report.lens.app import application

    name = reference.rpartition(":")[2]
    own = application(load_part(str(OWN_UNITS / reference))[1], name)
    client = starlette.TestClient(own, base_url="http://127.0.0.1")
    page = client.get("/").text
    assert name in page
    options = [found for tag, found in Markup(page).elements if tag == "option"]
    assert ["selected" in found for found in options if found["value"] == OWN] == [True]
    small = {"depth": 20, "width": 8}
    answer = client.get("/predict", params=small).json()
    assert "No prediction: theory has no rule" in answer["meaning"]
    assert answer["lab"] is None
    measured = client.get("/measure", params=small).json()
    assert {s["kind"] for row in measured["lab"]["rows"] for s in row["series"]} == {"measured"}
    # The package's own words for the same setting are predicted.
    assert client.get("/predict", params={**small, setting: WORDS[setting][0]}).json()["lab"] is not None


def test_a_whole_unit_keeps_its_change_of_shape() -> None:
    own = replace(BASIC, downsample=ZeroPad())
    settings = LensSettings.with_own(own)
    assert settings.unit == own
    assert replace(settings, shortcut="zero").unit == replace(own, h=SHORTCUTS["zero"]())


def test_the_application_predicts_and_measures(client: TestClient) -> None:
    words = {"depth": 20, "width": 4, "shortcut": "exclusive_gate", "bias": -3}
    predicted = client.get("/predict", params=words).json()
    assert "b<sub>g</sub> = −3" in predicted["equation"]
    assert "<svg" in predicted["drawing"]
    assert predicted["measured"] == ""
    measured = client.get("/measure", params=words).json()
    assert measured["measured"].startswith("Measured on 32 images in ")
    kinds = [[(one["name"], one["kind"]) for one in row["series"]] for row in measured["lab"]["rows"]]
    assert kinds[0] == [("signal", "measured"), ("signal", "predicted")]
    assert ("gradient", "measured") in kinds[1]


def test_plotly_is_served_under_an_address_of_its_own_to_be_kept(client: TestClient) -> None:
    (address,) = (found["src"] for tag, found in Markup(client.get("/").text).elements if "src" in found)
    answer = client.get(address)
    assert answer.text == page_assets.plotly_js()
    assert address == f"/plotly-{page_assets.plotly_version()}.js"
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["/predict", "/measure"])
def test_the_application_refuses_in_one_line(client: TestClient, path: str) -> None:
    answer = client.get(path, params={"depth": "many"})
    assert answer.status_code == 400
    assert answer.json() == {"error": "depth is 'many', which is not a whole number"}


def test_no_other_site_can_lead_here(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_an_impossible_port_is_one_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lens", "--port", port]) == 2
    assert f"--port is {port}; allowed: 0 to 65535" in capsys.readouterr().err


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["lens", "--port", str(port), "--no-browser"]) == 2
    assert f"--port {port} cannot be used: " in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_so(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith((missing, "kilolayer.report.lens.app"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["lens", "--no-browser"]) == 2
    assert "pip install 'kilolayer[lens]'" in capsys.readouterr().err
