"""The data doctor: quiet on good text, and every fault found and told with what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lens.data.language_id import can_judge, foreign_languages
from lens.data.quality.alignment import features, find_shift, kernel_z, parallel_t
from lens.data.quality.checks import check_template, check_text
from lens.data.quality.rows import merged_rows, repeated_rows
from lens.demo.languages import LANGUAGES
from lens.demo.questions import text
from lens.errors import InputError
from tests.helpers import tiny
from tests.helpers.command import run

N = 240


@pytest.fixture(scope="module")
def world():
    """Parallel sentences of the sample world, in seven languages."""
    return {code: text(code, N, split="test") for code in LANGUAGES}


@pytest.fixture(scope="module")
def prose():
    """Rows whose lengths and numbers differ, as those of real text do, in three languages."""
    words = {
        "en": "the river carries stones down from the high mountains in spring".split(),
        "es": "el río arrastra piedras desde las altas montañas durante la primavera".split(),
        "ru": "весной река несёт камни вниз с высоких снежных гор к морю".split(),
    }
    rows = {}
    for code, vocabulary in words.items():
        rows[code] = [
            " ".join(vocabulary[(i + j) % len(vocabulary)] for j in range(4 + (i * 7) % 23))
            + (f" {1000 + i}" if i % 3 == 0 else "") + (" ?" if i % 5 == 0 else ".")
            for i in range(N)
        ]  # fmt: skip
    return rows


def checks(report, level="warning", code=""):
    return [f.check for f in report.of_level(level) if not code or f.language == code]


def said(report, check):
    found = next(f for f in report.findings if f.check == check)
    assert found.advice
    return found


# ---------------------------------------------------------------- good text


def test_good_text_gives_no_warning(world, prose):
    for rows in (world, prose):
        report = check_text(rows)
        assert report.of_level("warning") == report.of_level("error") == ()
        assert report.passes(strict=True)
        assert {entry.rows for entry in report.languages} == {N}
    assert "nothing to complain about" in check_text(world).verdict()


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    "path", ["sib200/sib200.open.jsonl.xz", "bible-10/bible_parallel.open.jsonl.xz",
             "pydocs-6/pydocs_parallel.open.jsonl.xz"],
)  # fmt: skip
def test_good_corpora_give_no_warning(shared, path):
    report = check_text(shared / "data" / path, limit=200, judge=100, missing_rows="drop")
    assert report.of_level("warning") == report.of_level("error") == ()


@pytest.mark.needs_shared
def test_a_real_shift_and_rows_that_are_not_parallel(shared):
    tico = shared / "data" / "tico19" / "tico19.jsonl.xz"
    report = check_text(tico, languages=["en", "so", "sw"], judge=50)
    assert checks(report, code="som_Latn") == ["shift"] and not checks(report, code="swh_Latn")
    assert 1140 < said(report, "shift").rows[0] < 1180
    unrelated = shared / "data" / "lens" / "lens_probe300_7lang.jsonl"
    report = check_text(unrelated, judge=50)
    assert checks(report).count("parallel") == 6


# ---------------------------------------------------------------- language and script


def test_rows_in_another_language(world):
    rows = dict(world)
    rows["swh_Latn"] = [*world["swh_Latn"][:-20], *world["eng_Latn"][:20]]
    report = check_text(rows)
    found = said(report, "identity")
    assert found.level == "warning" and found.language == "swh_Latn"
    assert "English (eng_Latn)" in found.message
    assert found.rows[0] > N - 20 and world["eng_Latn"][found.rows[0] - N + 19] in found.examples[0]
    entry = next(e for e in report.languages if e.code == "swh_Latn")
    assert 10 < entry.foreign <= 20 and entry.judged > 200
    assert not report.passes(strict=True) and report.passes()


def test_a_file_under_the_wrong_name(world):
    report = check_text({"en": world["eng_Latn"], "sw": world["ind_Latn"]})
    assert "its rows are in Indonesian (ind_Latn)" in said(report, "identity").message


def test_a_language_that_the_identifier_does_not_know(world):
    assert can_judge("sw") and not can_judge("tir_Ethi")
    report = check_text({"en": world["eng_Latn"], "tir_Ethi": ["ሰላም ዓለም ብርሃን ማይ"] * N})
    assert said(report, "identity").level == "note"
    with pytest.raises(InputError, match="does not know tir_Ethi"):
        foreign_languages(["ሰላም"], "tir_Ethi")
    with pytest.raises(InputError, match="one string"):
        foreign_languages("ሰላም", "en")
    assert foreign_languages(["Short.", "12 34 56"], "en") == [None, None]


def test_another_script(world):
    rows = {"en": world["eng_Latn"], "ru": ["Gde zhivyot Anna, ya ne znayu sovsem"] * N}
    assert said(check_text(rows), "script").message.startswith(f"{N} of {N} rows")
    names = {"en": world["eng_Latn"], "zh": ["使用 reStructuredText 的项目非常多。"] * N}
    assert "script" not in [f.check for f in check_text(names).findings]


# ---------------------------------------------------------------- rows


def test_repeated_rows(prose):
    assert repeated_rows(["a", " a ", "b", "", ""]) == [1]
    assert merged_rows(["a", "a", "b", "b"], ["1", "2", "3", "3"]) == [1]
    rows = dict(prose)
    rows["es"] = [*prose["es"][:-30], *[prose["es"][3]] * 30]
    found = said(check_text(rows), "repeated")
    assert found.level == "warning" and found.message.startswith("30 row(s)")


def test_rows_that_were_not_translated(prose):
    rows = dict(prose)
    rows["es"] = [*prose["es"][:-12], *prose["en"][-12:]]
    found = said(check_text(rows), "same text")
    assert found.level == "warning" and "the same text as in eng_Latn" in found.message
    assert found.rows == (N - 11, N - 10, N - 9)


def test_damaged_characters(prose):
    rows = dict(prose)
    rows["ru"] = ["вес\ufffdной", "река\x08", *prose["ru"][2:]]
    found = said(check_text(rows), "characters")
    assert found.level == "warning" and found.rows == (1, 2)


@pytest.mark.parametrize("at", [0, 120])
@pytest.mark.parametrize("by", [1, -1, 2])
def test_a_shift_is_found_with_its_place_and_direction(prose, at, by):
    rows = prose["ru"]
    moved = rows[:at] + rows[at + by :] + rows[-by:] if by > 0 else (
        rows[:at] + rows[-1:] + rows[at:-1])  # fmt: skip
    shift = find_shift(*features(prose["en"], moved[:N]))
    assert shift is not None and shift.offset == by
    assert abs(shift.start - at) <= 12 and shift.stop > N - 30
    report = check_text({**prose, "ru": moved[:N]})
    found = said(report, "shift")
    which = "later" if by > 0 else "earlier"
    assert f"{abs(by)} row(s) {which}" in found.message and found.language == "rus_Cyrl"
    assert checks(report) == ["shift"]


def test_rows_in_another_order(prose):
    order = np.random.default_rng(0).permutation(N)
    mixed = [prose["es"][i] for i in order]
    a, b = features(prose["en"], mixed)
    assert parallel_t(a, b) < 3 < parallel_t(*features(prose["en"], prose["es"]))
    assert kernel_z(prose["en"], prose["es"]) > 4
    report = check_text({**prose, "es": mixed})
    assert checks(report) == ["parallel"] and "t = " in said(report, "parallel").message


def test_rows_of_odd_length(prose):
    rows = dict(prose)
    rows["es"] = [row[:2] if i % 15 == 0 else row for i, row in enumerate(prose["es"])]
    found = said(check_text(rows), "length")
    assert found.level == "warning" and found.message.startswith("16 row(s)")


def test_few_rows_are_not_judged_for_shifts(prose):
    few = {code: rows[:20] for code, rows in prose.items()}
    few["es"] = few["es"][::-1]
    report = check_text(few)
    assert not {"shift", "parallel"} & set(checks(report))
    assert "20 rows" in said(report, "counts").message


# ---------------------------------------------------------------- what cannot be used


def test_what_cannot_be_used_is_an_error_with_all_the_rest(prose, tmp_path):
    rows = {"en": prose["en"], "es": prose["es"][:-5], "ru": ["", " ", *prose["ru"][2:]]}
    report = check_text(rows)
    assert sorted(checks(report, "error")) == ["counts", "empty"]
    assert said(report, "empty").rows == (1, 2) and not report.passes()
    dropped = check_text({**rows, "es": prose["es"]}, missing_rows="drop")
    assert dropped.passes(strict=True) and said(dropped, "empty").level == "note"
    assert [entry.rows for entry in dropped.languages] == [N - 2] * 3
    nothing = check_text({"en": ["a", ""], "es": ["", "b"]}, missing_rows="drop")
    assert "no row has text in every language" in nothing.summary()
    (tmp_path / "en.txt").write_bytes(b"\xff\xfe\n")
    (tmp_path / "sw.txt.gz").write_bytes(b"\x1f\x8b\x08")
    report = check_text(tmp_path, languages=["en", "sw", "tr"])
    text = "\n".join(f.message for f in report.of_level("error"))
    for part in ("not UTF-8 in line(s) 1", "cannot be decompressed", "missing language 'tr'"):
        assert part in text
    with pytest.raises(InputError, match="does not exist"):
        check_text(tmp_path / "absent")
    with pytest.raises(InputError, match="judge: got 0"):
        check_text(rows, judge=0)


def test_row_numbers_stay_those_of_the_source(prose):
    rows = {code: ["", *texts] for code, texts in prose.items()}
    rows["es"] = [*rows["es"][:-12], *rows["en"][-12:]]
    assert said(check_text(rows, missing_rows="drop"), "same text").rows[0] == N - 10


# ---------------------------------------------------------------- under a tokenizer


def test_tokens_truncation_and_special_tokens(prose):
    tokenizer = tiny.tokenizer()  # one token per byte
    rows = dict(prose)
    rows["es"] = ["hola </s> adiós", *prose["es"][1:]]
    report = check_text(rows, tokenizer=tokenizer, max_tokens=200)
    by_code = {entry.code: entry for entry in report.languages}
    assert by_code["eng_Latn"].tokens_ratio == 1.0
    assert 1.6 < by_code["rus_Cyrl"].tokens_ratio < 2.2  # two bytes a letter
    longest = [len(row.encode()) + 1 for row in rows["ru"]]
    assert by_code["rus_Cyrl"].cut == sum(n > 200 for n in longest) > 0
    cut = [f for f in report.findings if f.check == "cut" and f.language == "rus_Cyrl"]
    assert str(max(longest)) in cut[0].message and "--max-tokens" in cut[0].advice
    special = said(report, "special tokens")
    assert special.language == "spa_Latn" and special.rows == (1,)
    limited = check_text(prose, tokenizer=tokenizer, longest=100)
    assert "what the model takes, 100" in said(limited, "cut").message


def test_a_tokenizer_that_hardly_knows_a_language(prose):
    rows = {"en": ["a"] * N, "ru": prose["ru"]}
    assert (
        "the tokenizer hardly knows"
        in said(check_text(rows, tokenizer=tiny.tokenizer()), "tokens").message
    )


def test_templates_that_begin_twice():
    assert "add_special_tokens=False" in check_template(tiny.tokenizer())[0].advice
    assert check_template(tiny.tokenizer(template=None)) == []
    assert check_template(tiny.tokenizer(template="{{ messages[0].content }}")) == []
    [found] = check_template(tiny.tokenizer(template="{{ bos_token }}{{ bos_token }}hi"))
    assert found.level == "warning" and "twice" in found.message


# ---------------------------------------------------------------- report and command


def test_the_report_as_table_json_and_html(prose):
    rows = {**prose, "es": [*prose["es"][:-12], *prose["en"][-12:]]}
    report = check_text(rows)
    summary = report.summary()
    assert "es (spa_Latn)" in summary and "-> translate them" in summary
    assert summary.endswith("rows: 2 warnings")  # in another language, and not translated
    assert "row 229: " in summary
    assert json.loads(json.dumps(report.to_dict()))["about"]["identifier"].startswith("py3langid")
    page = check_text({**prose, "en": ["<b>", *prose["en"][1:]]})._repr_html_()
    assert page.count("<tr>") == 4 and "<b>" not in page


def test_the_command(prose, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(prose), encoding="utf-8")
    rows = {**prose, "es": [*prose["es"][:-12], *prose["en"][-12:]]}
    bad.write_text(json.dumps(rows), encoding="utf-8")
    done = run("data", "check", good, "--strict")
    assert done.exit_code == 0 and "nothing to complain about" in done.stdout
    warned = run("data", "check", bad)
    assert warned.exit_code == 0 and "same text" in warned.stdout
    assert run("data", "check", bad, "--strict").exit_code == 2
    data = json.loads(run("data", "check", bad, "--strict", "--json", "--langs", "en,es").stdout)
    assert not data["passes"] and [entry["typed"] for entry in data["languages"]] == ["en", "es"]
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    shown = run("data", "check", good, "--model", tmp_path / "model", "--notes")
    assert "what the model takes, 128 tokens" in shown.stdout and "note: the chat" in shown.stdout
    bad.write_text(json.dumps({**prose, "es": prose["es"][:-1]}), encoding="utf-8")
    assert run("data", "check", bad).exit_code == 2
    absent = run("data", "check", tmp_path / "absent")
    assert absent.exit_code == 2 and absent.stdout == "" and "does not exist" in absent.stderr


def test_a_probe_warns_by_itself(prose, tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer(template=None).save_pretrained(tmp_path / "model")
    rows = {code: texts[:60] for code, texts in prose.items()}
    rows["es"] = [*rows["es"][1:], "adiós."]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    common = ("probe", "--model", tmp_path / "model", "--data", tmp_path / "rows.json", "--sites",
              "final", "--json", "--force", "--max-tokens", 100, "--out",
              tmp_path / "s.safetensors")  # fmt: skip
    done = run(*common)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["spa_Latn"] == 60
    assert "warning: spa_Latn: rows 1 to" in done.stderr and "lens data check" in done.stderr
    assert run(*common, "--no-check").stderr == run(*common, "--quiet").stderr == ""
