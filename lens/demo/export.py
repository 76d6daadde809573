"""The sample world as a user's files: models, parallel prompts, answers, references, text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lens.demo.languages import LANGUAGES
from lens.demo.models import CHECKPOINTS, checkpoint_path
from lens.demo.questions import PEOPLE, SPLITS, Question, questions, text
from lens.errors import InputError
from lens.utils.files import new_folder

TEXT_ROWS = 300


def export(out: str | Path, *, models: str | Path | None = None, force: bool = False) -> list[str]:
    """Write the world to a new folder: complete, or not at all.

    Parameters
    ----------
    out : str or Path
        Folder to make. It will hold ``base``, ``chat`` and ``mixed`` (Hugging Face checkpoints),
        ``prompts``, ``answers`` and ``references`` (one JSONL a split, one key per language, line
        i about the same fact everywhere), ``kinds`` (a text a split, line i whether the world's
        text states fact i in every language or in English only), ``text.jsonl`` and ``names.txt``.
    models : str or Path, optional
        Folder of ``docs/studies/sample_world/train_world.py``; the shipped models by default.
    force : bool
        Replace ``out``.

    Returns
    -------
    list of str
        Names of what was written.

    Raises
    ------
    InputError
        If ``out`` exists, or a model is missing.
    """
    sources = {name: _model(name, models) for name in CHECKPOINTS}
    with new_folder(out, force=force) as folder:
        for name, source in sources.items():
            shutil.copytree(source, folder / name)
        for split in SPLITS:
            asked = {code: questions(split, code) for code in LANGUAGES}
            _parallel(folder / "prompts" / f"{split}.jsonl", asked, lambda q: q.prompt)
            _parallel(folder / "answers" / f"{split}.jsonl", asked, lambda q: q.answer)
            accepted = (dict(q.accepted) for q in asked[LANGUAGES[0]])
            _lines(folder / "references" / f"{split}.jsonl", accepted)
            kinds = ("English only" if q.english_only else "shared" for q in asked[LANGUAGES[0]])
            _text(folder / "kinds" / f"{split}.txt", kinds)
        texts = {code: text(code, TEXT_ROWS) for code in LANGUAGES}
        rows = ({code: texts[code][i] for code in LANGUAGES} for i in range(TEXT_ROWS))
        _lines(folder / "text.jsonl", rows)
        _text(folder / "names.txt", PEOPLE)
        names = sorted(path.name for path in folder.iterdir())
    return names


def _model(name: str, models: str | Path | None) -> Path:
    if models is None:
        return checkpoint_path(name)
    path = Path(models) / name
    if not (path / "config.json").is_file():
        raise InputError(
            f"'{path}' holds no model; expected a folder of train_world.py "
            f"with {', '.join(CHECKPOINTS)}"
        )
    return path


def _parallel(
    path: Path, asked: dict[str, list[Question]], said: Callable[[Question], str]
) -> None:
    count = len(asked[LANGUAGES[0]])
    _lines(path, ({code: said(asked[code][i]) for code in LANGUAGES} for i in range(count)))


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _text(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def _text(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
