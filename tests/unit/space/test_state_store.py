"""Kept states: written while probing, mapped when read, enough for bootstrap and rank."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from lens.errors import InputError
from lens.models.hidden_states import capture
from lens.resample.bootstrap import bootstrap
from lens.resample.gram import gram
from lens.resample.rank import choose_rank
from lens.space.probe import probe
from lens.space.space import Space
from lens.space.state_store import StateStore, StateStoreWriter
from tests.helpers import tiny

CODES = ("eng_Latn", "spa_Latn", "swh_Latn")
ROWS = {
    "en": [f"the {word} number {i}" for i in range(8) for word in ("house", "bird", "bread")],
    "es": [f"la {word} es {i}" for i in range(8) for word in ("casa", "ave", "masa")],
    "sw": [f"{word} ni {i}" for i in range(8) for word in ("nyumba", "ndege", "mkate")],
}
TOLERANCE = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-23}


@pytest.fixture(scope="module")
def kept(llama, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "states"
    space = probe(llama, tokenizer, ROWS, pivot="en", keep_states=folder, states_dtype="float32")
    return space, StateStore(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_kept_states_are_those_of_the_rows(llama, tokenizer, tmp_path, dtype):
    probe(llama, tokenizer, ROWS, pivot="en", keep_states=tmp_path / "s", states_dtype=dtype)
    states = StateStore(tmp_path / "s")
    assert states.languages == CODES
    assert states.sites == ("block.0", "block.1", "block.2", "final")
    for code, rows in zip(CODES, ROWS.values(), strict=True):
        expected = capture(llama, tokenizer, rows, keep_states=True).states
        for site in states.sites:
            found = states.values(site, code)
            np.testing.assert_allclose(found, expected[site], rtol=TOLERANCE[dtype], atol=1e-7)
    assert not (tmp_path / "s.unfinished").exists()


def test_the_files_are_ordinary_safetensors(kept):
    _, states = kept
    with safe_open(states.folder / "block.1.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(CODES)
        np.testing.assert_array_equal(file.get_tensor("spa_Latn"), states.raw(1, "es"))
    record = json.loads((states.folder / "states.json").read_text())
    assert record["about"]["model"]["weights_sha256"]
    assert record["pooling"] == "mean"
    assert states.row_ids("en").tolist() == list(range(24))


def test_states_are_mapped_and_cannot_be_written(kept):
    raw = kept[1].raw("final")
    assert isinstance(raw, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        raw[0, 0] = 1


def test_gram_of_kept_states_is_that_of_the_states(kept, llama, tokenizer):
    _, states = kept
    in_memory = {
        code: capture(llama, tokenizer, rows, keep_states=True, sites=1).states["block.1"]
        for code, rows in zip(CODES, ROWS.values(), strict=True)
    }
    found, expected = states.gram(1), gram(in_memory)
    scale = np.abs(expected.matrix).max()
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=0, atol=1e-5 * scale)
    assert found.languages == CODES
    limited = states.gram(1, limit=5)
    assert limited.counts.tolist() == [5, 5, 5]
    some = np.linspace(0, 23, 5).round().astype(int)
    expected = gram({code: x[some] for code, x in in_memory.items()})
    np.testing.assert_allclose(limited.matrix, expected.matrix, rtol=0, atol=1e-5 * scale)
    assert bootstrap(found, rank=1, n_resamples=20).angles.shape == (20, 1)


def test_the_space_keeps_the_chosen_ranks_and_why(kept, tmp_path):
    space, states = kept
    chosen = space.choose_ranks(states, n_resamples=50, n_permutations=39)
    for site in space.sites:
        expected = choose_rank(states.gram(site), n_resamples=50, n_permutations=39)
        fitted = chosen.fit(site)
        assert (fitted.rank, fitted.rank_reason) == (expected.rank, expected.reason)
        assert fitted.basis.shape[1] == expected.rank
    assert chosen.fit(0, rank="full").rank == 2  # only "auto" takes it
    loaded = Space.load(chosen.save(tmp_path / "s.safetensors"))
    assert loaded.fit(1).rank_reason == chosen.fit(1).rank_reason
    assert "held-out" in loaded.summary()
    assert not chosen.drop("sw").about.ranks  # chosen with a language that is gone


def test_probe_chooses_ranks_when_asked(llama, tokenizer, tmp_path):
    space = probe(
        llama, tokenizer, ROWS, pivot="en", sites=-1, keep_states=tmp_path / "s", select_rank=True
    )
    assert set(space.about.ranks) == {"block.2"}
    with pytest.raises(InputError, match="name a folder with keep_states"):
        probe(llama, tokenizer, ROWS, pivot="en", select_rank=True)


def test_states_of_another_space_are_refused(kept, llama, tokenizer):
    _, states = kept
    other = probe(tiny.model("llama", seed=1), tokenizer, ROWS, pivot="en")
    with pytest.raises(InputError, match="the model: same type and sizes, other weights"):
        other.choose_ranks(states)
    fewer = {name: rows[:12] for name, rows in ROWS.items()}
    with pytest.raises(InputError, match="other rows: eng_Latn, spa_Latn, swh_Latn"):
        probe(llama, tokenizer, fewer, pivot="en").choose_ranks(states)


def test_a_value_beyond_the_dtype_names_the_row(tmp_path):
    options = {"sites": ("final",), "counts": {"eng_Latn": 3}, "width": 2}
    values = np.array([[1.0, 2.0], [3.0, 70000.0]])
    with StateStoreWriter(tmp_path / "s", dtype="float16", **options) as writer:
        with pytest.raises(InputError, match=r"final for row 2 of eng_Latn holds 70000, beyond"):
            writer.write("eng_Latn", "final", 1, values)
    with StateStoreWriter(tmp_path / "s", dtype="bfloat16", **options) as writer:
        writer.write("eng_Latn", "final", 1, values)


def test_rows_that_are_not_parallel(llama, tokenizer, tmp_path):
    rows = {"en": ROWS["en"], "es": ROWS["es"][:9]}
    probe(llama, tokenizer, rows, pivot="en", parallel=False, keep_states=tmp_path / "s")
    states = StateStore(tmp_path / "s")
    assert not states.parallel
    assert states.raw(0, "es").shape == (9, 32)
    assert states.gram(0).counts.tolist() == [24, 9]
    assert states.choose_rank(0, n_permutations=19).rank == 1


def test_bad_folders(tmp_path, kept, llama, tokenizer):
    _, states = kept
    with pytest.raises(InputError, match=r"no states\.json; make them with lens probe"):
        StateStore(tmp_path)
    with pytest.raises(InputError, match="exists already"):
        probe(llama, tokenizer, ROWS, pivot="en", keep_states=states.folder)
    with pytest.raises(InputError, match="states_dtype: got 'int8'"):
        probe(llama, tokenizer, ROWS, pivot="en", keep_states=tmp_path / "n", states_dtype="int8")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in states.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with (copy / "final.safetensors").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(
        InputError, match=r"final\.safetensors has 500 bytes, expected .* cut short"
    ):
        StateStore(copy)
    (copy / "states.json").write_text("{}")
    with pytest.raises(InputError, match="not of schema"):
        StateStore(copy)
    with pytest.raises(InputError, match=r"'tr' \(tur_Latn\) has no states"):
        states.raw(0, "tr")
    with pytest.raises(InputError, match="limit: got 1"):
        states.gram(0, limit=1)


def no_room(folder):
    """Claim more than a file may take; the limit holds for this process only."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    StateStoreWriter(folder, sites=("final",), counts={"eng_Latn": 100_000}, width=64)


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path):
    code = (
        f"from tests.unit.space.test_state_store import no_room; no_room({str(tmp_path / 's')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no room for 13 MB of states" in done.stderr
    assert not (tmp_path / "s").exists()
