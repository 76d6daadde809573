"""The run record, its figures, and the page, on made-up numbers."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import pytest

from lens.errors import InputError
from lens.evaluation.results import ResultRow, read_rows
from lens.report.console import print_table
from lens.report.figures import plot_grid, plot_languages, plot_losses, plot_site_spectra
from lens.report.html import direction, flat, render
from lens.report.io import is_run, read_run, write_run
from lens.report.record import Example, RunRecord
from lens.report.tables import finding, language_table, main_table
from tests.helpers.synthetic_run import LANGUAGES, SYSTEMS, make_record

VOID = {"meta", "br", "hr", "img", "link", "input", "path", "circle", "use", "rect", "line"}


class Page(HTMLParser):
    """Every element must be closed, every id used once, every reference must have its target."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag, attrs) -> None:
        self._note(tag, attrs)

    def _note(self, tag, attrs) -> None:
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag) -> None:
        if tag in VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return make_record()


@pytest.fixture(scope="module")
def page(record) -> str:
    return render(record)


def test_page_is_well_formed(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids)) > 100
    assert parsed.references
    assert set(parsed.references) <= {f"#{name}" for name in parsed.ids}
    assert page.startswith("<!DOCTYPE html>")


def test_page_asks_nothing_of_the_network(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]", page)
    parsed = Page(page)
    assert not [a for a in parsed.attributes if a[1] in ("src", "srcset", "action", "data")]
    assert "@import" not in page and "<script" not in page and "<link" not in page


def test_page_follows_light_and_dark(page: str) -> None:
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawn) > 10
    for svg in drawn:  # every colour in a figure is one of the page's own
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
            "none", *(f"var(--{name})" for name in
                      ("ink", "muted", "rule", "before", "after", "upper", "paper")),
        }  # fmt: skip
        assert "#0a0b" not in svg


def test_page_shows_every_system_language_and_number(record: RunRecord, page: str) -> None:
    text = " ".join(" ".join(Page(page).text).split())
    for system in record.systems:
        assert system.label in text and system.note in text
    for name in ("Spanish", "Swahili", "Russian", "95 %", "n = 500", "n = 3,000"):
        assert name in text
    for language in LANGUAGES:
        row = record.find("lens", language, "accuracy_in_language")
        assert f"{row.value:.2f}" in text and f"{row.low:.2f}–{row.high:.2f}" in text
    assert "9f86d081884c7d659a2feaa0c55ad015" in text and "lens demo --limit 500" in text


def test_page_is_the_same_each_time(record: RunRecord, page: str) -> None:
    assert render(record) == page


def test_examples_keep_their_script_and_are_escaped(page: str) -> None:
    assert 'lang="arb-Arab" dir="rtl">أين تعيش آنا؟' in page
    assert 'lang="zho-Hans" dir="ltr">安娜住在哪里？' in page
    assert "(17 &lt;b&gt;)" in page and "<b>)" not in page
    assert "no answer" in page


def test_hostile_text_stays_text(record: RunRecord) -> None:
    bad = '"><script>alert(1)</script>{{ 7 * 7 }}'
    hostile = replace(
        record, title=bad, about={bad: bad}, examples=(Example("spa_Latn", bad, bad, bad, bad),)
    )
    shown = render(hostile)
    assert "<script" not in shown and "{{ 7 * 7 }}" in shown
    assert Page(shown).open == []


def test_sparse_records_can_be_shown() -> None:
    row = ResultRow("mine", "spa_Latn", "test", "fidelity", 0.5, 10)
    shown = render(RunRecord(title="Small", rows=(row,), main="mine"))
    assert "mine" in shown and Page(shown).open == []
    assert "Prompts and answers" not in shown and "How it was made" not in shown
    with pytest.raises(InputError, match="splits found"):
        render(RunRecord(title="Empty", rows=(row,), split="validation"))


def test_missing_numbers_are_dashes(record: RunRecord) -> None:
    kept = tuple(row for row in record.rows if (row.system, row.metric) != ("diffmean", "kl"))
    table = main_table(replace(record, rows=kept))
    cells = {row.label: row.cells for row in table.rows}
    assert cells["DiffMean steering"][-1].value == "–" and cells["Lens"][-1].value == "0.012"


def test_unequal_n_is_shown_in_the_cells(record: RunRecord) -> None:
    first, *others = record.rows
    table = language_table(replace(record, rows=(replace(first, n=7), *others)), first.metric)
    assert [c.below for c in table.columns[:2]] == ["n beside each", "n = 500"]
    assert [row.cells[0].n for row in table.rows[:2]] == ["7", "500"]


def test_finding_says_the_numbers(record: RunRecord) -> None:
    text = finding(record)
    before = record.find("unchanged", "mean", "fidelity").value
    after = record.find("lens", "mean", "accuracy_in_language").value
    upper = record.find("possible", "mean", "accuracy_in_language").value
    for expected in (
        f"{before:.2f}",
        f"{after:.2f}",
        f"{100 * after / upper:.0f} %",
        "6 languages",
    ):
        assert expected in text
    assert finding(replace(record, summary="Said otherwise.")) == "Said otherwise."
    assert finding(replace(record, rows=())) == ""


def test_record_survives_json(record: RunRecord) -> None:
    again = RunRecord.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "schema"),
        ('{"schema": "lens.run/9"}', "lens.run/1"),
        ('{"schema": "lens.run/1", "title": "t", "rows": [], "colour": 1}', "colour"),
        ('{"schema": "lens.run/1", "title": "t", "spectra": [{"sight": 1}]}', "sight"),
        ('{"schema": "lens.run/1", "rows": []}', "title"),
    ],
)
def test_bad_records(content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        RunRecord.from_json(content, source="record.json")


def test_run_folder(tmp_path, record: RunRecord, page: str) -> None:
    shown = write_run(record, tmp_path / "run")
    assert shown.read_text(encoding="utf-8") == page
    assert read_run(tmp_path / "run") == read_run(tmp_path / "run" / "record.json") == record
    assert read_rows(tmp_path / "run" / "results.json") == list(record.rows)
    assert is_run(tmp_path / "run") and not is_run(tmp_path)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert not is_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"record\.json"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="splits found"):
        write_run(replace(record, split="none"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_figures_leave_the_global_style_alone(record: RunRecord) -> None:
    before = dict(mpl.rcParams)
    panels = [*plot_languages(record), *plot_site_spectra(record), *plot_losses(record),
              *plot_grid(record)]  # fmt: skip
    assert len(panels) == 2 + 2 + 3 + 6
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in {type(panel).__module__ for panel in panels}


def test_figures_show_the_numbers(record: RunRecord) -> None:
    (axes,) = plot_languages(record)[1].axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[0] == "English" and labels[-1] == "Average" and len(labels) == 8
    drawn = {round(float(x), 6) for line in axes.lines for x in line.get_xdata()}
    for language in (*LANGUAGES, "mean"):
        row = record.find("lens", language, "accuracy_in_language")
        assert {round(v, 6) for v in (row.value, row.low, row.high)} <= drawn


def test_terminal_table(record: RunRecord) -> None:
    out = io.StringIO()
    print_table(record, file=out)
    assert all(label in out.getvalue() for label in ("Unchanged", "DiffMean steering", "n = 500"))
    assert "\x1b[" not in out.getvalue()
    assert len(SYSTEMS) == len(main_table(record).rows)


def test_small_helpers() -> None:
    assert direction("heb_Hebr") == "rtl" and direction("eng_Latn") == "ltr"
    assert flat({"a": {"b_c": [1, 2]}, "d": None}) == [("a · b c", "1, 2"), ("d", "–")]
