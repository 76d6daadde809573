"""`lens.inspect_space`: what it says must be what the parts say, and what was planted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

import lens
from lens import metrics, resample
from lens.analysis.geometry import average_linkage, language_geometry, leaf_order
from lens.analysis.inspect import inspect_space, rows_enough
from lens.analysis.layer_band import LayerCurve, crossing
from lens.analysis.results import Inspection
from lens.errors import InputError, LensError, ShapeError
from lens.report.console import inspection_summary
from lens.report.inspection import plot_inspection, render_inspection
from lens.space.state_store import StateStore as KeptStates
from tests.helpers.command import run
from tests.unit.report.test_report import Page

WORDS = {
    "en": ("the house", "a bird", "bread", "water here"),
    "es": ("la casa", "una ave", "pan", "agua aqui"),
    "sw": ("nyumba", "ndege", "mkate", "maji hapa"),
    "tr": ("ev", "bir kus", "ekmek", "su burada"),
}
ROWS = {
    code: [f"{words[i % 4]} {i} " + "x" * (i % 7) for i in range(40)]
    for code, words in WORDS.items()
}
QUICK = {"n_resamples": 60, "n_permutations": 39, "n_threads": 1}


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inspection")


@pytest.fixture(scope="module")
def space(model, tokenizer, folder):
    found = lens.probe(model, tokenizer, ROWS, pivot="en", keep_states=folder / "states",
                       states_dtype="float32")  # fmt: skip
    found.save(folder / "space.safetensors")
    return found


@pytest.fixture(scope="module")
def states(space, folder):
    return KeptStates(folder / "states")


@pytest.fixture(scope="module")
def found(space, states):
    return inspect_space(space, states, **QUICK)


# --- the parts say the same -------------------------------------------------------------------


@pytest.mark.parametrize("site", ["block.1", "final"])
def test_each_section_is_what_its_function_gives(found, states, site):
    seen, gram = found.at(site), states.gram(site)
    choice = resample.choose_rank(gram, n_permutations=39)
    assert (seen.rank, seen.rank_reason) == (choice.rank, choice.reason)
    null = resample.permutation_spectrum(gram, n_permutations=39)
    np.testing.assert_allclose(seen.spectrum.singular_values, null.singular_values)
    np.testing.assert_allclose(seen.spectrum.null_high, np.quantile(null.null, 0.975, axis=0))
    assert seen.spectrum.p_value == null.p_value
    refits = resample.bootstrap(gram, rank=choice.rank, n_resamples=60)
    low, median, high = np.degrees(np.quantile(refits.angles[:, -1], (0.025, 0.5, 0.975)))
    np.testing.assert_allclose(
        (seen.angles.low, seen.angles.median, seen.angles.high), (low, median, high), atol=1e-4
    )
    of_rows = {code: states.values(site, code) for code in states.languages}
    each = np.degrees(np.median(refits.angles, axis=0))
    np.testing.assert_allclose(seen.angles.each, each, atol=1e-4)
    apart = metrics.separability(of_rows)
    assert seen.separation.accuracy == apart.accuracy
    assert seen.separation.low < apart.accuracy < seen.separation.high or apart.accuracy == 1
    for a in seen.alignment:
        expected = metrics.mexa(of_rows["eng_Latn"], of_rows[a.language], permutations=39)
        assert (a.score, a.n, a.p_value) == (expected.score, 40, expected.p_value)
        assert (a.variance, a.pivot_variance) == (expected.variance, expected.pivot_variance)


def test_the_curve_falls_with_the_square_root_of_the_rows(found):
    for site in found.sites:
        curve = site.curve
        assert curve.sizes == (4, 5, 10, 20, 40, 80, 160)
        assert curve.median[0] > curve.median[-1]
        assert all(low <= mid <= high for low, mid, high in
                   zip(curve.low, curve.median, curve.high, strict=True))  # fmt: skip


def test_rows_enough_between_two_sizes():
    assert rows_enough([100, 400], [20.0, 10.0], math.sqrt(200)) == 200
    assert rows_enough([100, 400], [9.0, 4.0], 15.0) == 100
    assert rows_enough([100, 400], [60.0, 30.0], 15.0) is None
    assert rows_enough([10, 20, 40, 80], [10.0, 20.0, 10.0, 5.0], 15.0) == 27  # the last crossing


def test_fewer_rows_are_looked_at_when_asked(space, states):
    few = inspect_space(space, states, limit=12, **QUICK)
    assert few.rows == 12
    site = few.at("block.2")
    assert site.alignment[0].n == 12 and site.separation.n == 48
    assert site.curve.sizes[-1] == 48
    assert few.disjoint_rows == 3


# --- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [2, 3, 9, 40])
def test_average_linkage_is_scipys(L):
    points = np.random.default_rng(L).normal(size=(L, 5))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    ours, theirs = average_linkage(distances), linkage(squareform(distances), "average")
    assert [(a, b) for a, b, _ in ours] == [(int(a), int(b)) for a, b in theirs[:, :2]]
    np.testing.assert_allclose([h for *_, h in ours], theirs[:, 2])
    assert sorted(leaf_order(ours, L)) == list(range(L))


def test_angles_and_norms_are_of_the_centred_means(space):
    means = space.means("block.1")
    shape = language_geometry(means, languages=space.languages)
    centred = means - means.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(shape.cosines, unit @ unit.T, atol=1e-12)
    np.testing.assert_allclose(shape.norms, np.linalg.norm(centred, axis=1))
    np.testing.assert_allclose(np.cos(np.radians(shape.angles)), shape.cosines, atol=1e-12)
    np.testing.assert_allclose(
        shape.distances, np.linalg.norm(means[:, None] - means, axis=2), atol=1e-9
    )


def test_equal_languages_have_no_geometry():
    with pytest.raises(InputError, match="equals the mean of all"):
        language_geometry(np.ones((3, 4)), languages=["a", "b", "c"])
    with pytest.raises(ShapeError, match="2 names"):
        language_geometry(np.eye(3), languages=["a", "b"])
    with pytest.raises(LensError, match="means"):
        language_geometry(np.array([[1.0, np.nan], [0.0, 1.0]]), languages=["a", "b"])


# --- the crossing rule ------------------------------------------------------------------------


def curve(*values, half=0.01):
    x = np.array(values)
    return LayerCurve(x, x - half, x + half)


SITES = tuple(f"block.{i}" for i in range(5))


def test_band_where_the_curves_cross():
    band = crossing(SITES, alignment=curve(0.1, 0.7, 0.8, 0.6, 0.1),
                    separability=curve(0.9, 0.5, 0.4, 0.5, 0.9))  # fmt: skip
    assert (band.rule, band.sites) == ("crossing", SITES[1:4])


def test_band_of_scaled_curves_says_that_it_is_weak():
    band = crossing(SITES, alignment=curve(0.1, 0.4, 0.5, 0.4, 0.1),
                    separability=curve(0.99, 0.9, 0.8, 0.9, 0.99))  # fmt: skip
    assert (band.rule, band.sites) == ("scaled", SITES[1:4])
    assert "do not cross" in band.reason


def test_no_band_from_flat_curves():
    band = crossing(SITES, alignment=curve(0.1, 0.4, 0.5, 0.4, 0.1),
                    separability=curve(0.999, 1.0, 0.998, 1.0, 0.999))  # fmt: skip
    assert (band.rule, band.sites) == ("none", ())
    assert "separability does not vary" in band.reason
    always = crossing(SITES, alignment=curve(*[0.9] * 5), separability=curve(*[0.1] * 5))
    assert always.rule == "none" and "every block" in always.reason
    assert crossing(SITES[:2], alignment=curve(1, 0), separability=curve(0, 1)).rule == "none"


# --- rows that are not parallel -------------------------------------------------------------


def test_rows_that_are_not_parallel_cost_certainty(found):
    """Where rows of all languages share much, fits to disjoint rows are further off."""
    assert found.disjoint_rows == 10
    apart = np.mean([site.disjoint.median for site in found.sites])
    together = np.mean([site.matched.median for site in found.sites])
    assert apart > together


# --- without states ---------------------------------------------------------------------------


def test_moments_alone_show_what_they_can_and_say_the_rest(space, folder):
    found = lens.inspect_space(folder / "space.safetensors")
    assert isinstance(found, lens.Inspection)
    assert found.rows is None and found.band is None
    for site in found.sites:
        fit = space.fit(site.site, agnostic="complement")
        assert site.rank == fit.rank
        np.testing.assert_array_equal(site.singular_values, fit.singular_values)
        assert 0 < site.noise_share <= 1
        assert site.geometry is not None and site.spectrum is None and not site.alignment
    assert "--keep-states" in found.missing["states"]
    assert "keep-states" in inspection_summary(found) and "keep-states" in render_inspection(found)
    assert set(plot_inspection(found)) == {"spectra", "geometry"}


def test_equal_languages_are_told_not_fitted(states):
    x = {code: states.values(0, code) for code in ("en", "es")}
    same = lens.Space.from_states(x | {"sw": x["es"]}, pivot="en", site="block.0")
    found = inspect_space(same)
    assert found.sites[0].rank is None and "same mean" in found.sites[0].rank_reason
    assert "same mean" in render_inspection(found) and "No site" in inspection_summary(found)
    assert plot_inspection(found) == {}
    with pytest.raises(InputError, match="nothing can be shown"):
        found.at()


def test_states_of_another_probe_are_refused(space, tmp_path, model, tokenizer):
    lens.probe(model, tokenizer, {c: r[:9] for c, r in ROWS.items()}, pivot="en",
               keep_states=tmp_path / "s")  # fmt: skip
    with pytest.raises(InputError, match="not those of this space"):
        inspect_space(space, tmp_path / "s")


def test_rows_that_are_not_parallel_get_no_alignment(model, tokenizer, tmp_path):
    uneven = {code: rows[: 20 + i] for i, (code, rows) in enumerate(ROWS.items())}
    keep = {"keep_states": tmp_path / "s", "sites": 1, "parallel": False}
    space = lens.probe(model, tokenizer, uneven, pivot="en", **keep)
    found = inspect_space(space, tmp_path / "s", **QUICK)
    assert found.sites[0].angles is not None and found.sites[0].separation is not None
    assert not found.sites[0].alignment and found.band is None and found.disjoint_rows is None
    assert "not parallel" in found.missing["alignment"]
    assert "not parallel" in render_inspection(found)


@pytest.mark.parametrize(
    "bad", [{"bound": 0}, {"bound": 90}, {"n_resamples": 3}, {"n_permutations": 5}, {"seed": -1},
            {"limit": 1}, {"limit": True}],
)  # fmt: skip
def test_bad_arguments_are_named(space, states, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        inspect_space(space, states, **bad)


# --- shown ------------------------------------------------------------------------------------


def test_the_page_is_whole_and_alone(found):
    page = Page(render_inspection(found))
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    for name in ("src", "href", "action"):
        outside = [v for _, n, v in page.attributes if n == name and not v.startswith("#")]
        assert outside == []
    text = "".join(page.text)
    for heading in (
        "Site by site",
        "In how many directions",
        "How certain",
        "Which languages lie",
        "Do translations meet",
        "Which layers",
        "not parallel have changed",
        "How it was made",
    ):
        assert heading in text  # fmt: skip
    assert found.at().rank_reason in text
    assert "None" not in text and "nan" not in text.replace("nance", "")


def test_numbers_travel_as_json(found):
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(data["sites"]) == [site.site for site in found.sites]
    site = data["sites"]["final"]
    assert site["rank"] == found.at("final").rank
    assert site["alignment"][0]["collapsed"] is False


def test_figures_and_notebook(found):
    drawn = plot_inspection(found)
    assert {name: len(panels) for name, panels in drawn.items()} == {
        "spectra": 2, "certainty": 2, "geometry": 2, "alignment": 2,
    }  # fmt: skip
    assert all(panel.axes[0].get_title(loc="left") for panels in drawn.values() for panel in panels)
    assert "<table>" in found._repr_html_() and "block.0" in inspection_summary(found)


def test_collapsed_states_are_pointed_out(found):
    site = found.sites[1]
    flat = replace(site.alignment[0], variance=site.alignment[0].pivot_variance / 11)
    assert flat.collapsed and not site.alignment[0].collapsed
    sites = (replace(site, alignment=(flat, *site.alignment[1:])), *found.sites[2:])
    shown = replace(found, sites=sites)
    assert isinstance(shown, Inspection)
    assert "hardly differ" in inspection_summary(shown) and "exclamation mark" in render_inspection(
        shown
    )


def test_verb_writes_a_folder_and_the_same_numbers(found, folder, tmp_path):
    arguments = ["inspect", folder / "space.safetensors", "--states", folder / "states",
                 "--resamples", 60, "--permutations", 39, "--out", tmp_path / "out"]  # fmt: skip
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    expected = json.loads(json.dumps(found.to_dict()))
    assert told["sites"]["block.1"]["rank"] == expected["sites"]["block.1"]["rank"]
    assert told["sites"]["block.1"]["alignment"] == expected["sites"]["block.1"]["alignment"]
    assert told["band"] == expected["band"]
    written = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert written["sites"] == told["sites"]
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    again = run(*arguments)
    assert again.exit_code == 2 and "exists already" in again.stderr
