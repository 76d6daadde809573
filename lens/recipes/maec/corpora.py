"""What is learnt from: questions with answers, or plain text, as token ids and targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens.data.found import Found
from lens.data.opening import kind, read_lines
from lens.errors import InputError
from lens.lsm.identity import rows_sha256
from lens.models.chat import ChatOptions, encode

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of tokens, and which of them are learnt.

    Attributes
    ----------
    ids : tuple of tuple of int
        Token ids of each row.
    predicting : tuple of range
        Positions of each row whose next token is learnt.
    """

    ids: tuple[tuple[int, ...], ...]
    predicting: tuple[range, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def about(self) -> dict[str, Any]:
        """Return number and hash of the rows."""
        learnt = [(at.start, at.stop) for at in self.predicting]
        return {
            "rows": len(self),
            "sha256": rows_sha256(self.ids),
            "tokens": sum(stop - start for start, stop in learnt),
        }


def read_rows(path: str | Path) -> list[tuple[str, str]]:
    """Read prompts and answers.

    Parameters
    ----------
    path : str or Path
        JSONL of ``{"prompt": …, "answer": …}``, perhaps compressed.

    Raises
    ------
    InputError
        If it cannot be read, or naming the lines that hold anything else.
    """
    found: list[tuple[str, str]] = []
    wrong: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        row = _json(line)
        pair = tuple(row.get(key) for key in ("prompt", "answer")) if isinstance(row, dict) else ()
        if len(pair) == 2 and all(isinstance(text, str) and text.strip() for text in pair):
            found.append((str(pair[0]), str(pair[1])))
        else:
            wrong.append(str(number))
    if wrong:
        listed = ", ".join(wrong[:_SHOWN]) + (", …" if len(wrong) > _SHOWN else "")
        raise InputError(
            f"{path}: line {listed} of {len(wrong)} in all: expected a JSON object with "
            'text under "prompt" and "answer"'
        )
    if not found:
        raise InputError(f"{path} holds no rows; expected a prompt and an answer in each line")
    return found


def read_text(path: str | Path) -> list[str]:
    """Read documents: lines of a text file, or ``text`` of each line of a JSONL file.

    Raises
    ------
    InputError
        If it cannot be read or holds no text.
    """
    lines = [line for line in _lines(path) if line.strip()]
    if kind(Path(path)) == ".jsonl":
        rows = [_json(line) for line in lines]
        wrong = [
            i for i, row in enumerate(rows, 1)
            if not (isinstance(row, dict) and isinstance(row.get("text"), str))
        ]  # fmt: skip
        if wrong:
            raise InputError(
                f'{path}: line {wrong[0]} holds no text; expected {{"text": …}} in every line'
            )
        lines = [row["text"] for row in rows if row["text"].strip()]
    if not lines:
        raise InputError(f"{path} holds no text; expected one document a line")
    return lines


def examples(
    tokenizer: Any,
    corpus: Sequence[tuple[str, str]] | Sequence[str],
    *,
    row_tokens: int = 512,
    chat: ChatOptions | None = None,
) -> Examples:
    """Encode a corpus.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    corpus : sequence of (str, str) or of str
        Prompts with answers, of which the answer and its end are learnt; or documents, which are
        put end to end and cut into rows of ``row_tokens``. What does not fill the last row is left
        out, unless it is all there is.
    chat : ChatOptions, optional
        Chat template flags.

    Raises
    ------
    InputError
        If the corpus is empty.
    """
    if not corpus:
        raise InputError("the corpus is empty; expected at least one row")
    if isinstance(corpus[0], str):
        return _packed(tokenizer, [str(text) for text in corpus], row_tokens)
    prompts, answers = zip(*corpus, strict=True)
    turns = encode(tokenizer, answers, role="assistant", prompts=prompts, chat=chat)
    end = tokenizer.eos_token_id
    ids = tuple((*row.ids, end) if end is not None else row.ids for row in turns)
    learnt = tuple(
        range(row.pool_start, min(row.pool_stop + 1, len(whole) - 1))
        for row, whole in zip(turns, ids, strict=True)
    )
    return Examples(ids, learnt)


def _packed(tokenizer: Any, documents: Sequence[str], row_tokens: int) -> Examples:
    end = tokenizer.eos_token_id
    flat: list[int] = []
    for row in encode(tokenizer, documents, role="text"):
        flat += row.ids
        if end is not None:
            flat.append(end)
    size = min(row_tokens, len(flat))
    count = len(flat) // size
    ids = tuple(tuple(flat[i * size : (i + 1) * size]) for i in range(count))
    return Examples(ids, (range(size - 1),) * count)


def _lines(path: str | Path) -> list[str]:
    found = Found(source=str(path))
    lines = read_lines(Path(path).expanduser(), found)
    if found.problems:
        raise InputError("; ".join(found.problems))
    return lines


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
