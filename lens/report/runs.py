"""Reports of run folders of every kind: training, sweep, inspection, evaluation, merge, demo."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from lens.analysis.results import Inspection
from lens.errors import InputError
from lens.evaluation.results import AVERAGE, ResultRow, read_text
from lens.report.console import (
    console_for,
    duration,
    fitting,
    print_inspection,
    print_table,
    stacked_table,
)
from lens.report.figures import PAGE, inline_panels, plot_curves, plot_estimates, plot_languages
from lens.report.html import fragment, page, run_body
from lens.report.inspection import INSPECTION, inspection_body, name_of_space
from lens.report.io import RECORD, read_run
from lens.report.record import LossCurve, RunRecord
from lens.report.tables import (
    METRIC_LABELS,
    Cell,
    Column,
    Table,
    TableRow,
    cell,
    language_name,
    language_table,
    main_table,
)
from lens.utils.files import said, write_text

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

Facts = Mapping[str, Any]
_EXAMPLES = 4  # answers of each language on a page
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class SectionPart:
    """Something in a section; ``content`` is a table, figures, facts or answers by ``kind``."""

    kind: Literal["table", "figures", "facts", "details", "answers"]
    content: Any
    caption: str = ""
    small: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[SectionPart]


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run, ready to be shown.

    Attributes
    ----------
    kind : str
        Such as ``training run``.
    title : str
    body : callable
        Takes a prefix for the ids of drawings, returns the content of a page.
    show : callable
        Takes a text file or None (stdout), prints the tables.
    page : Path
        Where the page stands by default.
    """

    kind: str
    title: str
    body: Callable[[str], Markup]
    show: Callable[[IO[str] | None], None]
    page: Path


@dataclass(frozen=True, slots=True)
class RunKind:
    """A kind of run: how it is recognised and read.

    Attributes
    ----------
    name, holds : str
        For people: what it is, and the files that say so.
    matches : callable
        Whether a folder, or a file, is of this kind.
    read : callable
        Returns its reports from the path.
    model : bool
        The folder is a checkpoint, whose hash a page inside would change: it stands beside it.
    """

    name: str
    holds: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Sequence[RunReport]]
    model: bool = False


def read_reports(path: str | Path) -> list[RunReport]:
    """Recognise a run and read it.

    Parameters
    ----------
    path : str or Path
        A run folder, or a file of one; the JSON that ``lens eval --out`` writes.

    Returns
    -------
    list of RunReport
        One; for a recipe (``lens maec run``) one for each of its stages.

    Raises
    ------
    InputError
        If nothing is there, it is no run of a known kind, or it cannot be read.
    """
    place = Path(path)
    if not place.exists():
        raise InputError(f"no file or folder '{place}'; check the path")
    if place.is_file() and place.name in _FILES:
        place = place.absolute().parent if place.parent == Path() else place.parent
    for kind in KINDS:
        if kind.matches(place):
            try:
                reports = kind.read(place)
            except _MALFORMED as error:
                raise InputError(
                    f"'{place}' looks like a {kind.name} but cannot be read: "
                    f"{type(error).__name__}: {error}; expected it as lens wrote it"
                ) from None
            target = place / "report.html" if place.is_dir() else place.with_suffix(".html")
            if kind.model:
                target = place.absolute().parent / f"{place.absolute().name}.report.html"
            return [
                replace(one, kind=kind.name, page=target) if one.kind == "" else one
                for one in reports
            ]
    raise InputError(f"'{place}' is no run that can be shown: {_contents(place)}; {_expected()}")


def _contents(place: Path) -> str:
    if place.is_file():
        return "a file that is not one of a run"
    if place.name.endswith(".unfinished") or (place / "workdir.json").is_file():
        return "the work folder of an unfinished job (give the same command again to resume it)"
    names = sorted(item.name + "/" * item.is_dir() for item in place.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"a folder with {', '.join(names[:8])}{more}" if names else "an empty folder"


def _expected() -> str:
    return "expected one of: " + "; ".join(f"{kind.name} ({kind.holds})" for kind in KINDS)


def render_runs(paths: Sequence[str | Path]) -> str:
    """Render runs of any kind as one self-contained HTML page.

    Parameters
    ----------
    paths : sequence of str or Path
        Run folders or files, see `read_reports`; several stand below one another.

    Returns
    -------
    str
        A page that works offline, follows the reader's light or dark scheme, and prints.

    Raises
    ------
    InputError
        If there are no paths, or one is no run of a known kind.
    MissingExtraError
        If jinja2 or matplotlib is not installed.
    """
    return _page([report for path in paths for report in read_reports(path)])


def write_report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write `render_runs` to a file, which is replaced if it is there.

    Parameters
    ----------
    paths : sequence of str or Path
        As in `render_runs`.
    out : str or Path, optional
        The page; by default ``report.html`` in the folder of the run, or ``NAME.report.html``
        beside a folder that is a checkpoint. Several runs need it.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        As `render_runs`, or if there are several paths and no ``out``.
    """
    reports = [report for path in paths for report in read_reports(path)]
    return write_reports(reports, page_of(paths, reports, out))


def page_of(
    paths: Sequence[str | Path], reports: Sequence[RunReport], out: str | Path | None
) -> Path:
    """Return where the page of these runs stands; see `write_report`."""
    if out is None and len(paths) != 1:
        raise InputError(f"{len(paths)} runs on one page need a file; pass --out (in Python out=)")
    return Path(out) if out is not None else reports[0].page


def write_reports(reports: Sequence[RunReport], target: Path) -> Path:
    """Write runs that were read already."""
    write_text(target, _page(reports))
    return target


def _page(reports: Sequence[RunReport]) -> str:
    if not reports:
        raise InputError(f"no run was given; {_expected()}")
    several = len(reports) > 1
    bodies = [
        (report.title, report.body(f"run{i}-" if several else ""))
        for i, report in enumerate(reports, 1)
    ]
    wide = any(report.kind == "sweep" for report in reports)
    return page(bodies, title=f"{len(bodies)} runs" if several else None, wide=wide)


# === what a run is made of ======================================================================


def _report(title: str, text: str, sections: Sequence[Section]) -> RunReport:
    """Report of sections; the tables among them are what a terminal shows."""

    def body(prefix: str) -> Markup:
        drawn = [
            Section(
                section.title,
                [
                    replace(part, content=inline_panels(part.content, f"{prefix}s{i}f{j}-"))
                    if part.kind == "figures"
                    else part
                    for j, part in enumerate(section.parts)
                ],
            )
            for i, section in enumerate(sections)
        ]
        return fragment("sections.html.j2", title=title, finding=text, sections=drawn)

    def show(file: IO[str] | None) -> None:
        console = console_for(file)
        console.print(title, style="bold", markup=False)
        if text:
            console.print(text, markup=False)
        for section in sections:
            for part in section.parts:
                if part.kind == "table":
                    short = len(part.caption) < 50
                    heading = f"{section.title}: {part.caption}" if short else section.title
                    for some in fitting(part.content, console.width):
                        console.print(stacked_table(some, title=heading))

    return RunReport("", title, body, show, Path())


def _object(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object."""
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"'{path}' holds {type(found).__name__}; expected a JSON object")
    return found


def _schema(path: Path) -> str:
    """Return the schema of a JSON file; empty where it has none or cannot be read."""
    try:
        return str(_object(path).get("schema", "")) if path.is_file() else ""
    except InputError:
        return ""


def _estimate(value: Sequence[float] | None, *, signed: bool = False) -> Cell:
    """Cell of (value, low, high)."""
    if value is None:
        return Cell()
    middle, low, high = (f"{x:{'+' if signed else ''}.3f}".replace("-", "−") for x in value)
    return Cell(middle, f"{low} to {high}" if signed else f"{low}–{high}")


def _made(facts: Facts, *keys: str) -> Section:
    """How a run was made: its command, and the facts of these keys."""
    command = facts.get("command")
    shown = {key: facts[key] for key in keys if facts.get(key) is not None}
    if isinstance(command, list):
        shown = {"command": shlex.join(map(str, command)), **shown}
    return Section("How it was made", [SectionPart("facts", shown)])


# === demo and inspection ========================================================================


def _record(folder: Path) -> list[RunReport]:
    record = read_run(folder)
    body = partial(run_body, record)
    return [RunReport("", record.title, body, lambda file: print_table(record, file=file), Path())]


def _inspection(folder: Path) -> list[RunReport]:
    path = folder / INSPECTION
    found = Inspection.from_dict(_object(path), source=f"'{path}'")
    body = partial(inspection_body, found)
    title = name_of_space(found)
    return [RunReport("", title, body, lambda file: print_inspection(found, file=file), Path())]


# === training ===================================================================================


def _training(folder: Path) -> list[RunReport]:
    facts, entries = _object(folder / "reproduce.json"), _entries(folder / "metrics.jsonl")
    curves = list(_curves(entries))
    groups = {
        "Losses over optimizer steps.": [c for c in curves if c.name.startswith("loss")],
        "Held-out losses.": [c for c in curves if c.name.startswith("validation")],
    }
    rest = [c for c in curves if not c.name.startswith(("loss", "validation"))]
    groups["Optimizer, shares of the loss, and movement of the states."] = rest
    sections = [
        Section(
            "Training",
            [
                SectionPart(
                    "table", _curve_table(curves), "First, last and lowest value of each measure."
                )
            ]
            + [
                SectionPart(
                    "figures", _draw(some), f"{caption} Each panel has a scale of its own.", True
                )
                for caption, some in groups.items()
                if some
            ],
        )
    ]
    if (folder / "trials.json").is_file():
        sections.append(_search(_object(folder / "trials.json")))
    decided = ("layers", "strength", "losses", "settings", "trained")
    read = ("base", "inputs", "space", "corpus", "replay", "keys", "prompts", "pivot", "validation")
    for title, keys in (("Settings", decided), ("What was read", read)):
        found = {key: facts[key] for key in keys if facts.get(key) is not None}
        if found:
            sections.append(Section(title, [SectionPart("facts", found)]))
    sections.append(_made(facts, "seed", "seconds", "checkpoint", "refusals", "versions"))
    text = _training_text(facts, curves)
    return [_report(f"Training: {folder.absolute().name}", text, sections)]


def _entries(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    entries = [json.loads(line) for line in lines]
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"'{path}' has lines that are no JSON object; expected one for each step")
    return entries


def _curves(entries: Sequence[Facts]) -> Iterator[LossCurve]:
    """Every number of a log over its steps, in the order in which it first appears."""
    names = dict.fromkeys(key for entry in entries for key in entry if key != "step")
    for name in names:
        points = [
            (int(entry.get("step", i)), float(entry[name]))
            for i, entry in enumerate(entries)
            if isinstance(entry.get(name), int | float)
        ]
        if points:
            steps, values = zip(*points, strict=True)
            yield LossCurve(name.replace("_", " "), steps, values)


def _draw(curves: Iterable[LossCurve]) -> list[Figure]:
    return plot_curves(curves, palette=PAGE)


def _curve_table(curves: Sequence[LossCurve]) -> Table:
    rows = []
    for curve in curves:
        lowest = min(range(len(curve.values)), key=lambda i: curve.values[i])
        values = (curve.values[0], curve.values[-1], curve.values[lowest])
        cells = [Cell(f"{value:.4g}") for value in values]
        rows.append(TableRow(curve.name, [*cells, Cell(str(curve.steps[lowest]))]))
    columns = [Column(name) for name in ("First", "Last", "Lowest", "At step")]
    return Table(columns, rows, "Measure")


def _training_text(facts: Facts, curves: Sequence[LossCurve]) -> str:
    by_name = {curve.name: curve for curve in curves}
    loss = by_name.get("loss", curves[0] if curves else None)
    if loss is None:
        return ""
    steps = loss.steps[-1] + 1
    text = f"{steps} step{'s' if steps > 1 else ''}"
    if facts.get("seconds"):
        text += f" in {duration(float(facts['seconds']))}"
    text += f": the {loss.name} went from {loss.values[0]:.4g} to {loss.values[-1]:.4g}."
    held = by_name.get("validation loss")
    if held is not None:
        i = min(range(len(held.values)), key=lambda k: held.values[k])
        text += f" The lowest held-out loss is {held.values[i]:.4g}, at step {held.steps[i]}."
    return text


def _search(trials: Facts) -> Section:
    """Trials of a search of settings, the chosen one emphasised."""
    best = trials["best"]["number"]
    columns = [Column("Quality"), Column("Fidelity"), Column("Drift", below="KL, nats")]
    columns += [Column("Blocks", css="why"), Column("λ", css="why")]
    rows = []
    for trial in trials["trials"]:
        strength = trial["strength"]
        numbers = [Cell(_number(trial[key])) for key in ("quality", "fidelity", "drift")]
        lambdas = ", ".join(f"{code.partition('_')[0]} {x:.3g}" for code, x in strength.items())
        cells = [*numbers, Cell(str(trial["setting"].get("layers", "–"))), Cell(lambdas)]
        rows.append(TableRow(f"trial {trial['number']}", cells, trial["number"] == best))
    caption = (
        f"Chosen by {METRIC_LABELS.get(trials['metric'], trials['metric'])} on validation "
        f"questions, under a drift of the pivot of at most {trials['max_drift']:g} nats."
    )
    return Section(
        "Search of settings", [SectionPart("table", Table(columns, rows, "Trial"), caption)]
    )


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


# === sweeps =====================================================================================


def _ablation(folder: Path) -> list[RunReport]:
    data = _object(folder / "results.json")
    lines, against = data["lines"], data["sweep"].get("against", "base")
    metrics = [m for m in METRIC_LABELS if lines and m in lines[0]["values"]]
    first = "accuracy_in_language" if "accuracy_in_language" in metrics else metrics[0]
    caption = (
        f"Averages over the languages other than the pivot on the {data['split']} questions, with "
        "95 % intervals over models, seeds and questions below each value."
    )
    drawn = [
        plot_estimates(
            METRIC_LABELS[metric], [(line["name"], *line["values"][metric]) for line in lines]
        )
        for metric in metrics
    ]
    changed = [(line["name"], *line["change"]) for line in lines if line["change"]]
    if changed:
        drawn.append(plot_estimates(f"Change from {against}", changed, share=False))
    codes = list(lines[0]["languages"][first]) if lines else []
    by_language = Table(
        [Column(language_name(code)) for code in codes],
        [
            TableRow(line["name"], [Cell(f"{line['languages'][first][c]:.2f}") for c in codes])
            for line in lines
        ],
        "Setting",
    )
    sections = [
        Section(
            "Settings compared",
            [
                SectionPart("table", _settings_table(lines, metrics, against), caption),
                SectionPart("figures", drawn, "The same, drawn; bars are 95 % intervals."),
            ],
        ),
        Section("Per language", [SectionPart("table", by_language, f"{METRIC_LABELS[first]}.")]),
        Section("The sweep", [SectionPart("facts", data["sweep"])]),
        _made(data, "split", "versions"),
    ]
    return [_report(data["sweep"].get("title") or "Ablation", _best(lines, first), sections)]


def _settings_table(lines: Sequence[Facts], metrics: Sequence[str], against: str) -> Table:
    kinds = list(lines[0]["kinds"]) if lines else []
    columns = [Column(METRIC_LABELS[metric]) for metric in metrics]
    columns += [Column(kind) for kind in kinds]
    columns += [Column("Change", below=f"from {against}"), Column("Pivot")]
    columns += [Column("KL drift", below="nats"), Column("Runs", below="× questions")]
    rows = []
    for line in lines:
        cells = [_estimate(line["values"].get(metric)) for metric in metrics]
        cells += [_estimate(line["kinds"].get(kind)) for kind in kinds]
        cells += [_estimate(line["change"], signed=True)]
        cells += [Cell(_number(line["pivot"])), Cell(f"{line['kl']:.4f}")]
        cells += [Cell(f"{line['runs']} × {line['items']}")]
        rows.append(TableRow(line["name"], cells, line["name"] == against))
    return Table(columns, rows, "Setting")


def _best(lines: Sequence[Facts], metric: str) -> str:
    if not lines:
        return ""
    best = max(lines, key=lambda line: line["values"][metric][0])
    value, low, high = best["values"][metric]
    return (
        f"Of {len(lines)} settings, {best['name']} has the highest value of "
        f"“{METRIC_LABELS[metric]}”: {value:.3f} ({low:.3f} to {high:.3f})."
    )


# === evaluations ================================================================================


def _evaluation(path: Path) -> list[RunReport]:
    path = path / "results.json" if path.is_dir() else path
    data = _object(path)
    about = data.get("about") or {}
    rows = tuple(ResultRow.from_dict(row) for row in data["rows"])
    if not rows:
        raise InputError(f"'{path}' has no rows; expected at least one measured number")
    record = RunRecord(
        title=f"Evaluation: {path.stem if path.name != 'results.json' else path.parent.name}",
        rows=rows,
        main=rows[-1].system,
        pivot=about.get("pivot") or "",
        split=rows[0].split,
        baseline="",
        upper="",
    )
    tables = [
        SectionPart("table", language_table(record, metric), METRIC_LABELS.get(metric, metric))
        for metric in dict.fromkeys(row.metric for row in rows)
    ]
    panels = plot_languages(record, palette=PAGE)
    caption = f"{record.main}, per language; bars are 95 % intervals."
    figures = [SectionPart("figures", panels, caption)] if panels else []
    main = main_table(record)
    sections = [
        Section(
            "Result",
            [
                *(
                    [SectionPart("table", main, "With 95 % intervals below each value.")]
                    if main.columns
                    else []
                ),
                *figures,
            ],
        ),
        Section("Per language", tables),
    ]
    answers = list(_some(data.get("answers") or []))
    if answers:
        note = [SectionPart("answers", answers)]
        sections.append(Section("Prompts and answers", note))
    if about:
        sections.append(Section("How it was made", [SectionPart("facts", about)]))
    return [_report(record.title, _evaluation_text(record), sections)]


def _evaluation_text(record: RunRecord) -> str:
    """Sentence on the average of every metric; empty without averages."""
    found = [row for row in record.rows if row.language == AVERAGE]
    shares = [
        f"{METRIC_LABELS.get(row.metric, row.metric).lower()} {_estimate_text(row)}"
        for row in found
        if row.system == record.main
    ]
    return f"{record.main}, averaged over languages: {'; '.join(shares)}." if shares else ""


def _estimate_text(row: ResultRow) -> str:
    shown = cell(row)
    return f"{shown.value} ({shown.interval})" if shown.interval else shown.value


def _some(answers: Sequence[Facts]) -> Iterator[dict[str, str]]:
    """Pick a few answers of each language, spread evenly."""
    by_language: dict[str, list[Facts]] = {}
    for answer in answers:
        by_language.setdefault(str(answer["language"]), []).append(answer)
    for code, mine in by_language.items():
        for answer in mine[:: max(1, -(-len(mine) // _EXAMPLES))]:
            found = answer.get("identified")
            yield {
                "language": code,
                "prompt": str(answer["prompt"]),
                "answer": str(answer["answer"]),
                "identified": language_name(found) if found else "no language",
                "expected": "",
            }


def _has_rows(path: Path) -> bool:
    """Whether a file, or the results.json of a folder, holds rows."""
    path = path / "results.json" if path.is_dir() else path
    try:
        return path.suffix == ".json" and isinstance(_object(path).get("rows"), list)
    except InputError:
        return False


# === merges and recipes =========================================================================


def _merge(folder: Path) -> list[RunReport]:
    facts = _object(folder / "reproduce.json")
    config, sources = facts["config"], facts["sources"]
    method = str(config.get("merge_method", "merge"))
    rows = []
    for name, shards in sources.items():
        size = sum(int(shard.get("bytes", 0)) for shard in shards.values())
        hashes = ", ".join(str(shard.get("sample_xxh64", "–")) for shard in shards.values())
        role = "base" if name == config.get("base_model") else "model"
        cells = [Cell(role), Cell(str(len(shards))), Cell(said(size)), Cell(hashes)]
        rows.append(TableRow(name, cells, role == "base"))
    columns = [Column("Role", css="why"), Column("Files"), Column("Size")]
    columns.append(Column("XXH64", below="of a sample", css="why"))
    caption = "What was read. lens verify computes tensors again and compares them."
    sections = [
        Section("Sources", [SectionPart("table", Table(columns, rows, "Model"), caption)]),
        Section("Method", [SectionPart("facts", config)]),
    ]
    notes = {key: value for key, value in (facts.get("facts") or {}).items() if value}
    if isinstance(notes.get("located"), Mapping):  # bit masks: count what they mark
        notes["located"] = {i: _located(masks) for i, masks in notes["located"].items()}
    if notes:
        sections.append(Section("Notes of the method", [SectionPart("facts", notes)]))
    fit = facts.get("fit")
    if fit:
        sections.append(_fit(fit))
    sums = facts.get("checksums") or {}
    if sums:
        lines = [TableRow(name, [Cell(str(value))]) for name, value in sums.items()]
        table = Table([Column("XXH64", css="text")], lines, "Tensor")
        written = SectionPart("details", table, f"Checksums of {len(sums)} tensors")
        sections.append(Section("What was written", [written]))
    sections.append(_made(facts, "versions", "lens", "schema", "slice_elements", "shard_size"))
    form = f"an adapter, off by {_number(fit.get('error'))} (relative)" if fit else "a checkpoint"
    text = f"{len(sources)} models, merged by {method} into {form}."
    return [_report(f"Merge: {folder.absolute().name}", text, sections)]


def _located(masks: Mapping[str, Facts]) -> str:
    count = sum(int(mask["units"] or "0", 16).bit_count() for mask in masks.values())
    return f"{count:,} units in {len(masks)} tensors"


def _fit(fit: Facts) -> Section:
    """How well an adapter holds the delta, the worst tensors first."""
    fits = sorted(fit["fits"].items(), key=lambda item: -item[1]["error"])
    rows = [
        TableRow(
            name, [Cell(str(one["rank"])), *(Cell(f"{one[k]:.3g}") for k in ("error", "norm"))]
        )
        for name, one in fits[:15]
    ]
    table = Table(
        [Column("Rank"), Column("Error"), Column("Norm", below="of the delta")], rows, "Tensor"
    )
    caption = f"Low-rank fit of {len(fits)} tensors: the 15 with the largest error."
    return Section("Fit of the adapter", [SectionPart("table", table, caption)])


def _recipe(folder: Path) -> list[RunReport]:
    """Read the stages of a recipe that are models, in the order they were made."""
    stages = ["located", "ability", "pivot"]
    if (folder / "languages").is_dir():
        stages += sorted(f"languages/{item.name}" for item in (folder / "languages").iterdir())
    found = [folder / stage for stage in (*stages, "merged")]
    target = folder / "report.html"
    return [
        replace(report, kind="recipe", page=target)
        for stage in found
        if (stage / "reproduce.json").is_file()
        for report in read_reports(stage)
    ]


def _holds(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / name).is_file() for name in names)


def _is_merge(folder: Path) -> bool:
    return _schema(folder / "reproduce.json").startswith("lens.merge/")


def _is_ablation(folder: Path) -> bool:
    return _schema(folder / "results.json").startswith("lens.ablation/")


_FILES = (RECORD, INSPECTION, "reproduce.json", "metrics.jsonl", "results.json", "runs.jsonl")
KINDS = (
    RunKind("demo run", RECORD, _holds(RECORD), _record),
    RunKind("inspection", INSPECTION, _holds(INSPECTION), _inspection),
    RunKind("sweep", "results.json of lens ablate", _is_ablation, _ablation),
    RunKind("merge", "reproduce.json of lens merge", _is_merge, _merge, model=True),
    RunKind(
        "training run",
        "metrics.jsonl and reproduce.json",
        _holds("metrics.jsonl", "reproduce.json"),
        _training,
        model=True,
    ),
    RunKind(
        "recipe", "recipe.yaml and stages.jsonl", _holds("recipe.yaml", "stages.jsonl"), _recipe
    ),
    RunKind("evaluation", "the JSON file of lens eval --out", _has_rows, _evaluation),
)
"""Every kind of run; the first that matches is taken."""
