"""Language codes and parallel text in every accepted form, and every problem with them."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.data.corpora import read_parallel
from lens.data.languages import canonical, canonical_all, english_name
from lens.errors import InputError


@pytest.mark.parametrize(
    ("spellings", "code"),
    [
        (("en", "eng", "eng_Latn", "English", "EN", "en-US"), "eng_Latn"),
        (("sw", "swa", "swh", "swh_Latn", "Swahili", "sw_KE"), "swh_Latn"),
        (("zh", "zho", "cmn", "zh-Hans", "zho_Hans", "Chinese", "zh-CN"), "zho_Hans"),
        (("zh-Hant", "zh-TW"), "zho_Hant"),
        (("ar", "arb", "ara", "arb_Arab"), "arb_Arab"),
        (("id", "in", "ind", "Bahasa Indonesia"), "ind_Latn"),
        (("es", "spa", "Spanish", "español"), "spa_Latn"),
        (("tr", "tur"), "tur_Latn"),
        (("ru", "rus", "rus_Cyrl"), "rus_Cyrl"),
        (("fa", "pes"), "pes_Arab"),
        (("tl", "fil", "tgl"), "tgl_Latn"),
        (("et", "est", "ekk"), "est_Latn"),
        (("no", "nb"), "nob_Latn"),
    ],
)
def test_spellings(spellings, code):
    assert {canonical(s) for s in spellings} == {code}
    assert canonical(code) == code


@given(st.sampled_from("en sw zh ar id es tr ru fa tl et no ja ko hi mn az lv ku sq".split()))
def test_canonical_codes_are_fixed_points(code):
    assert canonical(canonical(code)) == canonical(code)
    assert english_name(canonical(code)) == english_name(code)


def test_unknown_languages_name_the_nearest():
    with pytest.raises(InputError, match=r"nearest: Swahili \(swh_Latn\)"):
        canonical("Swahly")
    for nothing in ("xx", "qqq", "", "und", "item"):
        with pytest.raises(InputError, match="unknown language"):
            canonical(nothing)


def test_names():
    assert english_name("swh_Latn") == "Swahili"
    assert english_name("zho_Hant") == "Chinese (traditional)"
    assert english_name("fa") == "Persian"


def test_duplicates_and_unknowns_are_reported_together():
    assert canonical_all(["en", "Swahili"]) == {"eng_Latn": "en", "swh_Latn": "Swahili"}
    with pytest.raises(InputError) as caught:
        canonical_all(["en", "English", "Gibberish"])
    assert "'en' and 'English' are both eng_Latn" in str(caught.value)
    assert "Gibberish" in str(caught.value)


# ---------------------------------------------------------------- reading

ROWS = {"en": ["one", "two \u2028 still two", "three"], "sw": ["moja", "mbili", "tatu"]}


def write_txt(folder: Path) -> Path:
    for code, rows in ROWS.items():
        (folder / f"{code}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "README.txt").write_text("not a language\n")
    return folder


def write_json_each(folder: Path) -> Path:
    for code, rows in ROWS.items():
        (folder / f"{code}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def records() -> str:
    both = zip(*ROWS.values(), strict=True)
    lines = [{"item": i, "doc": "a", "en": e, "sw": s} for i, (e, s) in enumerate(both)]
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def write_jsonl(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text(records())
    return folder / "rows.jsonl"


def write_jsonl_xz(folder: Path) -> Path:
    (folder / "rows.open.jsonl.xz").write_bytes(lzma.compress(records().encode()))
    return folder / "rows.open.jsonl.xz"


def write_json(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS))
    return folder / "rows.json"


def write_tsv_gz(folder: Path) -> Path:
    lines = ["ref\ten\tsw", *(f"x\t{e}\t{s}" for e, s in zip(*ROWS.values(), strict=True))]
    (folder / "rows.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder / "rows.tsv.gz"


WRITERS = [write_txt, write_json_each, write_jsonl, write_jsonl_xz, write_json, write_tsv_gz]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_rows(tmp_path, write):
    corpus = read_parallel(write(tmp_path))
    assert corpus.rows == {"eng_Latn": ROWS["en"], "swh_Latn": ROWS["sw"]}
    assert corpus.typed == {"eng_Latn": "en", "swh_Latn": "sw"}


def test_selection_order_and_limit(tmp_path):
    corpus = read_parallel(write_jsonl(tmp_path), languages=["Swahili", "en"], limit=2)
    assert list(corpus.rows) == ["swh_Latn", "eng_Latn"]
    assert corpus.typed["swh_Latn"] == "Swahili"
    assert corpus.rows["swh_Latn"] == ["moja", "mbili"]


def problems(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_parallel(path, **options)
    return str(caught.value)


def test_all_problems_are_listed_at_once(tmp_path):
    (tmp_path / "en.txt").write_text("one\n\nthree\n")
    (tmp_path / "english.txt").write_text("one\n")
    (tmp_path / "sw.txt").write_bytes(b"moja\n\xff\xfe\n")
    text = problems(tmp_path, languages=["eng", "sw", "sw", "tr", "Gibberish"])
    for part in (
        "duplicate language eng_Latn",
        "duplicate language swh_Latn",
        "missing language 'tr' (tur_Latn)",
        "unknown language 'Gibberish'",
        "unequal numbers of rows",
        "eng_Latn: 1 empty row(s): 2",
        "sw.txt: not UTF-8 in line(s) 2",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"en": "a", "sw": "b"}\n{"en": "c"}\n', "swh_Latn: 1 empty row(s): 2"),
        ("rows.jsonl", '{"en": "a", "sw": "b"}\n', "too few rows: 1"),
        ("rows.jsonl", "{nonsense\n", "line 1: not JSON"),
        ("rows.jsonl", "[1]\n", "line 1: expected an object"),
        ("rows.json", "[]", "expected an object"),
        ("rows.json", '{"en": "text"}', "expected a list of strings"),
        ("rows.json", "nonsense", "not JSON"),
        ("rows.tsv", "en\tsw\na\tb\nc\n", "line 3: 1 columns; expected 2"),
        ("rows.tsv", "", "empty"),
        ("rows.csv", "en,sw\n", "unknown kind of file"),
        ("rows.jsonl.xz", "not compressed", "cannot be decompressed"),
        ("rows.jsonl", '{"item": 1}\n', "no language was found"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    assert message in problems(tmp_path / name)


def test_no_data(tmp_path):
    assert "does not exist" in problems(tmp_path / "nothing")
    assert "no <code>.txt" in problems(tmp_path)
    assert "limit is 0" in problems(write_json(tmp_path), limit=0)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    (tmp_path / "en.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "sw.txt").write_bytes(b"moja\r\nmbili")
    rows = read_parallel(tmp_path).rows
    assert rows == {"eng_Latn": ["one", "two"], "swh_Latn": ["moja", "mbili"]}


@pytest.mark.needs_shared
def test_a_real_corpus(shared):
    path = shared / "data" / "tico19" / "tico19.jsonl.xz"
    corpus = read_parallel(path, languages=["en", "sw", "zh"], limit=50)
    assert list(corpus.rows) == ["eng_Latn", "swh_Latn", "zho_Hans"]
    assert {len(rows) for rows in corpus.rows.values()} == {50}
