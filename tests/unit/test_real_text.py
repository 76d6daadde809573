"""The study of docs/real-text.md in small: what must hold on any few dozen rows of real text."""

import json
import lzma

import numpy as np
import pytest

import lens
from lens.models.hidden_states import capture
from tests.bench.real_states import PARTS, check_documents, chosen
from tests.bench.real_text import topic_hits, topic_share
from tests.helpers.studies import load_study

study = load_study("probe_variants/probe_variants")
directions, share_inside = study.directions, study.share_inside

LANGUAGES = ("en", "es", "fr", "ru", "zh")
needs_shared = pytest.mark.needs_shared


@pytest.fixture(scope="module")
def polyglot(shared):
    place = shared / "models" / "polyglot-14m"
    if not place.is_dir():
        pytest.skip("no model for development: LENS_SHARED has no models/polyglot-14m")
    return lens.models.load(place, dtype="float32")


@pytest.fixture(scope="module")
def states(polyglot):
    """States (L, n, d) of two corpora at one block."""
    found = {}
    for name in ("tico-fit", "sib"):
        rows = chosen(next(part for part in PARTS if part.name == name))[::12]
        found[name] = np.stack([
            capture(*polyglot, [row[code] for row in rows], sites=4, keep_states=True, n_threads=1)
            .states["block.4"] for code in LANGUAGES
        ])  # fmt: skip
    return found


@needs_shared
def test_the_subspace_of_one_corpus_holds_the_languages_of_another(states):
    basis = directions(states["tico-fit"].mean(axis=1), 3)
    other = states["sib"].mean(axis=1)
    rng = np.random.default_rng(0)
    random = [np.linalg.qr(rng.normal(size=basis.shape))[0] for _ in range(50)]
    assert share_inside(other, basis) > 0.8
    assert max(share_inside(other, drawn) for drawn in random) < 0.3


@needs_shared
def test_languages_are_named_on_another_corpus(states):
    means, x = states["tico-fit"].mean(axis=1), states["sib"]
    apart = ((x[:, :, None] - means) ** 2).sum(axis=3)
    assert (apart.argmin(axis=2) == np.arange(5)[:, None]).mean() > 0.95


@needs_shared
def test_documents_of_the_check_are_not_those_of_the_fit(shared):
    path = shared / "data" / "tico19" / "tico19.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    held = check_documents(rows)
    fit, check = (chosen(part) for part in PARTS[:2])
    assert {row["doc"] for row in check} <= held and not {row["doc"] for row in fit} & held
    assert 0.2 < np.mean([row["doc"] in held for row in rows]) < 0.45


def test_topics_that_are_planted_are_found():
    """The measures themselves, on states whose topics and languages are known."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    topics, basis = np.eye(20)[:3] * 5, np.eye(20)[:, 5:7]
    z = rng.normal(size=(4, 60, 20)) + topics[labels]
    assert topic_hits(z, labels, 3).mean() > 0.95
    assert topic_hits(z - z @ np.eye(20)[:, :3] @ np.eye(20)[:3], labels, 3).mean() < 0.6
    flat = z.mean(axis=0)
    assert topic_share(flat, labels, np.eye(20)[:, :3], 3) > 0.95
    assert topic_share(flat, labels, basis, 3) < 0.05
