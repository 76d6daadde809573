"""docs/studies/probe_variants: other ways of reading states, against states read one by one."""

import numpy as np
import pytest

import lens
from lens.errors import InputError
from lens.models.hidden_states import capture
from tests.helpers import tiny
from tests.helpers.studies import load_study
from tests.unit.analysis.test_inspect import ROWS, WORDS

study = load_study("probe_variants/probe_variants")
compare_readings, directions = study.compare_readings, study.directions
share_inside = study.share_inside


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture(scope="module")
def space(model, tokenizer):
    return lens.probe(model, tokenizer, ROWS, pivot="en")


def test_padding_is_read_only_where_rows_are_shorter_than_their_batch(model, tokenizer, space):
    equal = {code: [f"{code} row {i:02d}" for i in range(20)] for code in WORDS}
    ranks = {site: 2 for site in space.sites}
    pads, cut = compare_readings(space, model, tokenizer, equal, ranks=ranks, limit=10)[2:]
    assert pads.name.startswith("position") and pads.note.startswith("0 of 40")
    assert max(pads.largest) < 1e-2 and min(pads.kept) > 1 - 1e-6
    assert cut.note.startswith("0 of 40") and max(cut.largest) < 1e-4


def test_padded_states_are_those_of_single_rows_with_pads_behind(model, tokenizer, space):
    ranks = {site: 2 for site in space.sites}
    pads = compare_readings(space, model, tokenizer, ROWS, ranks=ranks, limit=20)[2]
    assert pads.rows == 20
    n = {code: [len(row) for row in rows[:20]] for code, rows in ROWS.items()}
    batches = [lengths[i : i + 8] for lengths in n.values() for i in range(0, 20, 8)]
    short = sum(length < max(batch) for batch in batches for length in batch)
    assert pads.note == f"{short} of 80 rows end in padding"
    assert max(pads.largest) > 10


def test_a_cut_is_found_where_rows_are_long(model, tokenizer, space):
    long = {code: [row + " " + (words[i % 4] * 30)[:60] for i, row in enumerate(ROWS[code])]
            for code, words in WORDS.items()}  # fmt: skip
    ranks = {"block.1": 2}
    found = compare_readings(space, model, tokenizer, long, ranks=ranks, limit=20)
    other, cut = found[0], found[-1]
    assert cut.sites == ("block.1",)
    longer = sum(len(row) + 1 > 64 for rows in long.values() for row in rows[:20])
    assert cut.note == f"{longer} of 80 rows are longer" and longer > 40
    means = [
        np.stack([capture(model, tokenizer, long[code][:20], sites=1, max_tokens=cut_at)
                  .moments["block.1"].result().mean for code in long])
        for cut_at in (64, None)
    ]  # fmt: skip
    bases = [directions(m, 2) for m in means]
    expected = np.degrees(lens.subspace.principal_angles(*bases))
    np.testing.assert_allclose(cut.angles[0], expected, atol=1e-5)
    kept = share_inside(means[1], bases[0]) / share_inside(means[1], bases[1])
    assert cut.kept[0] == pytest.approx(kept)
    assert 0 < other.largest[0] <= 90


def test_readings_refuse_what_does_not_belong(model, tokenizer, space):
    ranks = {"block.0": 1}
    with pytest.raises(InputError, match="another model"):
        compare_readings(space, tiny.model(seed=3), tokenizer, ROWS, ranks=ranks)
    with pytest.raises(InputError, match="no text in tur_Latn"):
        some = {code: ROWS[code] for code in ("en", "es", "sw")}
        compare_readings(space, model, tokenizer, some, ranks=ranks)
    with pytest.raises(InputError, match="unequal numbers of rows"):
        compare_readings(space, model, tokenizer, ROWS | {"tr": ROWS["tr"][:9]}, ranks=ranks)
    with pytest.raises(InputError, match="fewer than 4 rows"):
        few = {code: rows[:3] for code, rows in ROWS.items()}
        compare_readings(space, model, tokenizer, few, ranks=ranks)


def test_one_command_prints_the_table(model, tokenizer, space, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    space.save(tmp_path / "space.safetensors")
    (tmp_path / "text").mkdir()
    for code, rows in ROWS.items():
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    places = (tmp_path / "space.safetensors", "--model", tmp_path / "model", "--data")
    study.main([str(item) for item in (*places, tmp_path / "text", "--limit", 20)])
    told = capsys.readouterr().out
    assert all(name in told for name in ("other rows", "position", "cut after 64"))
    ranks = {site: 2 for site in space.sites}
    found = compare_readings(space, model, tokenizer, ROWS, ranks=ranks, limit=20)
    panels = study.plot_readings(found)
    assert len(panels) == len(found) - 1
    assert all(panel.axes[0].get_title(loc="left") for panel in panels)
