"""The language space: what it gives, how it is joined, its file, and probing a model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from lens.data.corpora import read_parallel
from lens.errors import InputError
from lens.models.fingerprint import model_fingerprint, sha256_rows, tokenizer_sha256
from lens.models.hidden_states import capture
from lens.models.loading import load
from lens.models.tokenization import ChatOptions
from lens.space.probe import probe
from lens.space.space import Space
from lens.subspace import principal_angles
from tests.helpers import tiny

ROWS = {
    "en": ["the house is red", "a bird sings", "we eat bread", "rain falls"],
    "es": ["la casa es roja", "un ave canta", "comemos pan", "cae lluvia"],
    "Swahili": ["nyumba ni nyekundu", "ndege anaimba", "tunakula mkate", "mvua inanyesha"],
}
CODES = ("eng_Latn", "spa_Latn", "swh_Latn")


@pytest.fixture(scope="module")
def space(llama, tokenizer):
    return probe(llama, tokenizer, ROWS, pivot="en")


def made_up(seed=0, languages=("en", "es", "sw", "tr"), rows=40, width=12):
    """Build states that differ by language along three directions, plus noise."""
    generator = np.random.default_rng(seed)
    steps = generator.standard_normal((len(languages), width)) * 3
    return {
        "block.0": {
            code: 5.0 + step + generator.standard_normal((rows, width))
            for code, step in zip(languages, steps, strict=True)
        }
    }


# ---------------------------------------------------------------- what it gives


def test_probe_gives_means_of_the_captured_states(space, llama, tokenizer):
    assert space.languages == CODES
    assert space.pivot == "eng_Latn"
    assert space.sites == ("block.0", "block.1", "block.2", "final")
    assert space.counts == dict.fromkeys(CODES, 4)
    assert space.width == 32
    for i, rows in enumerate(ROWS.values()):
        kept = capture(llama, tokenizer, rows, keep_states=True).states
        for site in space.sites:
            np.testing.assert_allclose(space.means(site)[i], kept[site].mean(0), rtol=1e-12)
            noise = kept[site].var(0, ddof=1).sum() / 4
            np.testing.assert_allclose(space.noise(site)[i], noise, rtol=1e-9)


def test_delta_is_the_step_from_the_pivot(space):
    means = space.means(-1)
    np.testing.assert_array_equal(space.delta("block.2", "sw"), means[2] - means[0])
    assert not space.delta("final", "en").any()
    with pytest.raises(InputError, match=r"'tr' \(tur_Latn\) is not in this space; it has: eng"):
        space.delta(0, "tr")
    with pytest.raises(InputError, match=r"unknown site 'block\.9'"):
        space.delta("block.9", "sw")


def test_fits_of_every_site(space):
    fits = space.fit_all(rank="full", agnostic="complement")
    assert set(fits) == set(space.sites)
    for site, result in fits.items():
        assert result.basis.shape == (32, 2)
        np.testing.assert_allclose(result.basis.T @ result.basis, np.eye(2), atol=1e-12)
        # At full rank the step between means lies in the subspace.
        step = space.delta(site, "es")
        inside = result.basis @ (result.basis.T @ step)
        np.testing.assert_allclose(inside, step, atol=1e-9 * np.linalg.norm(step))


def test_provenance(space, llama, tokenizer):
    about = space.about
    assert about.typed["swh_Latn"] == "Swahili"
    assert about.data["spa_Latn"][0].sha256 == sha256_rows(ROWS["es"])
    assert about.model == model_fingerprint(llama)
    assert about.tokenizer_sha256 == tokenizer_sha256(tokenizer)
    assert about.template_sha256 is None
    assert about.role == "text"


def test_roles_record_template_and_prompts(llama, tokenizer):
    prompts = {"en": ["say"], "es": ["di"], "sw": ["sema"]}
    other = {"en": ["do"], "es": ["haz"], "sw": ["fanya"]}
    made = [
        probe(llama, tokenizer, ROWS, role="assistant", prompts=texts, sites="final", chat=chat)
        for texts, chat in (
            (prompts, None),
            (other, None),
            (prompts, ChatOptions(enable_thinking=True)),
        )
    ]
    assert made[0].about.template_sha256 == made[1].about.template_sha256
    assert made[0].about.template_sha256 != made[2].about.template_sha256
    assert made[0].about.prompts_sha256 != made[1].about.prompts_sha256
    assert not np.allclose(made[0].means("final"), made[1].means("final"))
    with pytest.raises(InputError, match="has none for swh_Latn"):
        del prompts["sw"]
        probe(llama, tokenizer, ROWS, role="assistant", prompts=prompts)
    with pytest.raises(InputError, match="belongs to role 'assistant'"):
        probe(llama, tokenizer, ROWS, prompts=other)


@pytest.mark.parametrize(
    ("rows", "options", "messages"),
    [
        ({"en": ["a", "b"]}, {}, ["one language only"]),
        ({"en": ["a", "b"], "English": ["a", "b"]}, {}, ["are both eng_Latn"]),
        ({"en": ["a", "b"], "es": ["a"]}, {}, ["unequal numbers", "too few rows"]),
        ({"es": ["a", "b"], "sw": ["a", "b"]}, {}, ["pivot 'eng_Latn'"]),
        ({"es": ["a"]}, {"pivot": "tr"}, ["one language only", "pivot 'tr'", "too few"]),
        (ROWS, {"sites": "block.3"}, ["unknown layer 3"]),
        (ROWS, {"sites": "7:9"}, ["reach outside"]),
        ({"en": ["a", "b"], "sw": ["a", ""]}, {}, ["swh_Latn: row 1 gives no tokens"]),
        ({"en": ["a", "b"], "Gibberish": ["a", "b"]}, {}, ["unknown language 'Gibberish'"]),
    ],
)
def test_bad_probes(llama, tokenizer, rows, options, messages):
    with pytest.raises(InputError) as caught:
        probe(llama, tokenizer, rows, **options)
    for message in messages:
        assert message in str(caught.value)


def test_a_model_without_blocks(tokenizer):
    with pytest.raises(InputError, match="cannot find the decoder blocks of Linear"):
        probe(torch.nn.Linear(2, 2), tokenizer, ROWS)


def test_rows_that_are_not_parallel_can_be_allowed(llama, tokenizer):
    rows = {"en": ["one", "two", "three"], "sw": ["moja", "mbili"]}
    made = probe(llama, tokenizer, rows, parallel=False, sites=0)
    assert made.counts == {"eng_Latn": 3, "swh_Latn": 2}


def test_a_space_is_read_without_torch(space, tmp_path):
    path = space.save(tmp_path / "space.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lens.space.space import Space\n"
        "from lens.steering.policy import Policy, PolicyRule\n"
        "from lens.steering.vectors import diffmean_rules\n"
        f"space = Space.load({str(path)!r})\n"
        "print(len(diffmean_rules(space, 'sw', layers=1)), space.summary())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 Space of 3 languages")


# ---------------------------------------------------------------- joining


def shard(model, tokenizer, start, stop, languages=tuple(ROWS)):
    rows = {name: ROWS[name][start:stop] for name in languages}
    return probe(model, tokenizer, rows, row_offset=start)


def test_shards_merge_to_the_whole_in_any_order(space, llama, tokenizer):
    first, second = shard(llama, tokenizer, 0, 2), shard(llama, tokenizer, 2, 4)
    for merged in (first.merge(second), second.merge(first)):
        assert merged.counts == space.counts
        for site in space.sites:
            np.testing.assert_allclose(merged.means(site), space.means(site), rtol=1e-6, atol=1e-6)
    assert first.merge(second).sha256 == second.merge(first).sha256
    assert first.counts["eng_Latn"] == 2  # the parts are not changed


def test_shards_that_share_rows_are_refused(llama, tokenizer):
    first = shard(llama, tokenizer, 0, 3)
    with pytest.raises(InputError, match="rows 2 to 3 of eng_Latn are in both"):
        first.merge(shard(llama, tokenizer, 2, 4))


def test_extend_and_drop_are_inverse(space, llama, tokenizer):
    two = probe(llama, tokenizer, {k: ROWS[k] for k in ("en", "es")}, pivot="en")
    extended = two.extend(probe(llama, tokenizer, {k: ROWS[k] for k in ("en", "Swahili")}))
    assert extended.languages == space.languages
    assert extended.sha256 == space.sha256
    assert extended.drop("sw").sha256 == two.sha256
    assert extended.drop("sw").about.data.keys() == two.about.data.keys()


def test_what_cannot_be_dropped(space):
    with pytest.raises(InputError, match="pivot eng_Latn cannot be dropped"):
        space.drop("en")
    with pytest.raises(InputError, match="at least two languages; found: eng_Latn"):
        space.drop("es", "sw")
    with pytest.raises(InputError, match="is not in this space"):
        space.drop("tr")


def test_extending_by_other_rows_of_one_language_is_refused(space, llama, tokenizer):
    with pytest.raises(InputError, match="eng_Latn is in both spaces with different rows"):
        space.extend(shard(llama, tokenizer, 0, 2))


def test_spaces_read_differently_are_not_joined(space, llama, tokenizer):
    with pytest.raises(InputError) as caught:
        space.merge(probe(tiny.model("llama", seed=1), tokenizer, ROWS, pooling="last"))
    assert "pooling differs: 'mean' and 'last'" in str(caught.value)
    assert "same type and sizes, other weights" in str(caught.value)
    with pytest.raises(InputError, match="sites"):
        space.merge(probe(llama, tokenizer, ROWS, sites=0))


# ---------------------------------------------------------------- model


def test_another_model_is_refused(space, llama):
    space.check_model(llama)
    with pytest.raises(InputError, match="same type and sizes, other weights"):
        space.check_model(tiny.model("llama", seed=1))
    with pytest.raises(InputError, match="model_type llama and qwen2"):
        space.check_model(tiny.model("qwen2"))


def test_a_trained_last_block_is_another_model(space):
    trained = tiny.model("llama")
    with torch.no_grad():
        trained.model.layers[-1].mlp.down_proj.weight += 1e-3
    with pytest.raises(InputError, match="another model"):
        space.check_model(trained)


def test_a_wider_dtype_is_the_same_model(tokenizer):
    narrow = tiny.model("llama").to(torch.bfloat16)
    made = probe(narrow, tokenizer, ROWS, sites=0)
    made.check_model(narrow.to(torch.float32))


# ---------------------------------------------------------------- file


def test_a_saved_space_is_the_same_bit_for_bit(space, tmp_path):
    path = space.save(tmp_path / "space.safetensors")
    loaded = Space.load(path)
    assert loaded.sha256 == space.sha256
    assert loaded.about == space.about
    assert loaded.languages == space.languages
    for site in space.sites:
        np.testing.assert_array_equal(loaded.means(site), space.means(site))
        np.testing.assert_array_equal(loaded.noise(site), space.noise(site))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["space.json", "space.safetensors"]


def test_the_file_explains_itself(space, tmp_path):
    space.save(tmp_path / "space.safetensors")
    twin = json.loads((tmp_path / "space.json").read_text())
    assert twin["schema"] == "lens.space/1"
    assert twin["languages"] == list(CODES)
    assert twin["fits"]["block.1"]["rank"] == space.fit(1, agnostic="complement").rank
    with safe_open(tmp_path / "space.safetensors", framework="numpy") as file:
        basis = file.get_tensor("fit/block.1/basis")
        about = json.loads(file.metadata()["about"])
    np.testing.assert_array_equal(basis, space.fit(1, agnostic="complement").basis)
    assert about == {key: value for key, value in twin.items() if key != "schema"}


def test_equal_languages_can_be_kept_though_not_fitted(tmp_path):
    states = made_up(languages=("en", "es"))
    states["block.0"]["es"] = states["block.0"]["en"]
    made = Space.from_states(states, pivot="en")
    made.save(tmp_path / "s.safetensors")
    twin = json.loads((tmp_path / "s.json").read_text())
    assert twin["fits"]["block.0"]["rank"] is None
    assert Space.load(tmp_path / "s.safetensors").sha256 == made.sha256
    assert "block.0" in made.summary()


def test_damaged_and_foreign_files(space, tmp_path):
    path = space.save(tmp_path / "space.safetensors")
    content = path.read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="truncated or damaged"):
            Space.load(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(InputError, match="not a language space: its schema is None"):
        Space.load(path)
    with pytest.raises(InputError, match="does not exist; make one with lens probe"):
        Space.load(tmp_path / "nothing.safetensors")


def test_a_space_with_parts_missing(space, tmp_path):
    path = space.save(tmp_path / "space.safetensors")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {n: file.get_tensor(n) for n in file.keys() if "spa_Latn" not in n}
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(InputError, match="not a complete language space"):
        Space.load(path)


def test_failed_writing_leaves_the_old_file_and_nothing_else(space, tmp_path, monkeypatch):
    path = space.save(tmp_path / "space.safetensors")
    before = path.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        space.drop("es").save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["space.json", "space.safetensors"]


def test_where_a_space_cannot_be_written(space, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"cannot write .* choose a place"):
        space.save(tmp_path / "file" / "s.safetensors")
    assert space.save(tmp_path / "new" / "folder" / "s.safetensors").is_file()
    with pytest.raises(InputError, match="overwritten by its JSON twin"):
        space.save(tmp_path / "s.json")


# ---------------------------------------------------------------- states made elsewhere, showing


def test_states_made_elsewhere():
    made = Space.from_states(made_up(), pivot="English")
    assert made.languages == ("eng_Latn", "spa_Latn", "swh_Latn", "tur_Latn")
    assert made.fit(0).rank >= 1
    made.check_model(torch.nn.Linear(2, 2))  # no fingerprint and no width to compare
    with pytest.raises(InputError, match="width 12, the model has 32"):
        made.check_model(tiny.model("llama"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["block.0"].update(es=np.zeros(12)), r"shape \(12,\), expected \(n, d\)"),
        (lambda s: s["block.0"]["es"].__setitem__((3, 1), np.nan), "es at .*: row 3 is not finite"),
        (lambda s: s["block.0"].update(English=np.zeros((2, 12))), "duplicate language eng_Latn"),
        (lambda s: s.update(final={"en": np.zeros((40, 12))}), "must have the same languages"),
        (lambda s: s.clear(), "at least one site"),
    ],
)
def test_states_that_make_no_space(change, message):
    states = made_up()
    change(states)
    with pytest.raises(InputError, match=message):
        Space.from_states(states, pivot="en")


def test_showing(space):
    text = space.summary()
    assert "pivot eng_Latn" in text and "block.2" in text and "rank" in text
    page = space._repr_html_()
    assert page.count("<tr>") == 5
    assert "swh_Latn" in page
    assert "pivot='eng_Latn'" in repr(space)


@pytest.mark.needs_shared
def test_languages_of_a_real_model(shared, tmp_path):
    model, tokenizer = load(shared / "models" / "polyglot-14m")
    languages = ["en", "es", "ru", "zh", "sw"]
    path = shared / "data" / "tico19" / "tico19.jsonl.xz"
    rows = read_parallel(path, languages=languages, limit=60).rows
    halves = [
        {code: texts[start:stop] for code, texts in rows.items()}
        for start, stop in ((0, 30), (30, 60))
    ]
    one, two = (probe(model, tokenizer, half, max_tokens=128, sites=[3, 6]) for half in halves)
    for site in one.sites:
        a, b = one.fit(site, rank=3), two.fit(site, rank=3)
        angles = np.degrees(principal_angles(a.basis, b.basis))
        # Two random 3-spaces of 320 dimensions are at nearly 90 degrees in every direction.
        assert angles[0] < 20 and angles.max() < 60
        assert one.delta(site, "ru") @ two.delta(site, "ru") > 0
    loaded = Space.load(one.save(tmp_path / "s.safetensors"))
    loaded.check_model(model)
