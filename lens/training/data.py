"""Training data: prompts checked, encoded, and sent through the frozen prefix once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.architecture import logits
from lens.models.fingerprint import rows_sha256
from lens.models.hidden_states import check_rows
from lens.models.prefix_cache import PrefixCache
from lens.models.tokenization import ChatOptions, Role, encode
from lens.space.space import Space
from lens.training.processes import Processes
from lens.utils.files import said, size_in_bytes
from lens.utils.progress import say


def held_out(
    validation: Mapping[str, Sequence[str]] | None, space: Space, trained: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Return validation prompts in the languages that are trained, or none."""
    if validation is None:
        return {}
    rows = checked_prompts(validation, space)
    missing = [lang for lang in trained if lang not in rows]
    if missing:
        raise InputError(
            f"the validation prompts lack {', '.join(missing)}; give them in every language trained"
        )
    again = set(rows[space.pivot]) & set(trained[space.pivot])
    if again:
        say(f"{len(again)} validation prompts are training prompts too")
    return {lang: rows[lang] for lang in trained}


def checked_prompts(prompts: Mapping[str, Sequence[str]], space: Space) -> dict[str, list[str]]:
    """Prompts by canonical language, the pivot first, or one error that lists every problem."""
    rows = {canonical(lang): list(texts) for lang, texts in prompts.items()}
    problems = []
    if space.pivot not in rows:
        problems.append(f"the pivot {space.pivot} has no prompts")
    if len(rows) < 2:
        problems.append("prompts in at least one language besides the pivot are needed")
    absent = [lang for lang in rows if lang not in space.languages]
    if absent:
        problems.append(
            f"the space has no {', '.join(absent)} (it has {', '.join(space.languages)})"
        )
    if len({len(texts) for texts in rows.values()}) > 1 or not all(rows.values()):
        counts = ", ".join(f"{lang}: {len(texts)}" for lang, texts in rows.items())
        problems.append(f"prompts are not parallel, row counts are {counts}")
    if problems:
        raise InputError("cannot train on these prompts: " + "; ".join(problems))
    pivot = space.pivot
    return {pivot: rows[pivot]} | {lang: rows[lang] for lang in rows if lang != pivot}


# Beside the weights, in float32: the copy that undoes training, gradients, and two moments. With
# 16-bit weights copy and gradients are smaller, and a float32 copy for the optimizer is added.
_PER_TRAINED = 4


def memory_for_states(
    model: nn.Module,
    *,
    trained_bytes: int,
    idle: Iterable[nn.Module] = (),
    max_memory: str | int | None,
) -> int | None:
    """Bytes of memory left for cached states; None when there is no limit.

    Weights in main memory count, of ``idle`` modules (in files) the largest, and what is trained
    with gradients, moments and a copy; a limit that these pass is refused. Activations do not.
    """
    if max_memory is None:
        return None
    limit = size_in_bytes(max_memory)
    weights = _bytes_of([model])
    idle = list(idle)
    largest = max((_bytes_of([module]) for module in idle), default=0)
    needed = weights - _bytes_of(idle) + max(largest, _PER_TRAINED * trained_bytes)
    if needed > limit:
        raise InputError(
            f"max_memory is {said(limit)}, but the weights take {said(weights)} and training "
            f"what was chosen another {said(_PER_TRAINED * trained_bytes)}; train fewer blocks, "
            "use lora, load the model in 16 or 8 bit, or allow more"
        )
    return limit - needed


def _bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters in main memory, each counted once."""
    found = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in found.values() if p.device.type == "cpu")


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of tokens, and the positions whose next token is learnt.

    Attributes
    ----------
    ids : tuple of tuple of int
        Token ids of each row.
    predicting : tuple of range
        Positions of each row before a token that is learnt.
    """

    ids: tuple[tuple[int, ...], ...]
    predicting: tuple[range, ...]

    @classmethod
    def of_answers(
        cls,
        tokenizer: Any,
        prompts: Sequence[str],
        answers: Sequence[str],
        chat: ChatOptions | None,
    ) -> Examples:
        """Encode answers in the assistant's turn; they and the end of the turn are learnt."""
        if not answers:
            return cls((), ())
        turns = encode(tokenizer, answers, role="assistant", prompts=prompts, chat=chat)
        end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        ids = tuple((*row.ids, *end) for row in turns)
        learnt = tuple(
            range(row.pool_start, min(row.pool_stop + 1, len(whole) - 1))
            for row, whole in zip(turns, ids, strict=True)
        )
        return cls(ids, learnt)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def about(self) -> dict[str, Any]:
        """Return number and hash of the rows."""
        return {
            "rows": len(self),
            "sha256": rows_sha256(self.ids),
            "tokens": sum(map(len, self.predicting)),
        }


# Where the cache has row i of a language: all rows, or those this process owns.
CacheIndices = range | dict[int, int]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows in the prefix cache, and where in it they are: all that losses know of a run.

    Data for validation are the same with other prompts: ``replace(data, rows=…, tokens=…)``.

    Attributes
    ----------
    cache : PrefixCache
        Entries and frozen states of all rows, and the model above them.
    pivot : str
        Pivot language.
    languages : tuple of str
        The other languages that are trained.
    processes : Processes
        Those that share the prompts.
    rows, tokens : dict
        Per language, the pivot first: where the cache has prompt i, and its length in tokens.
    texts, text_tokens : dict
        The same for plain text.
    answers, answer_tokens : dict
        Per language, one entry per prompt: where the cache has its answer or None, and the number
        of tokens predicted in it.
    pivot_answer_lengths : list of int
        Tokens of the pivot's prompts with their answers.
    predicting : dict of int to range
        Per row of the cache: positions before a target.
    """

    cache: PrefixCache
    pivot: str
    languages: tuple[str, ...]
    processes: Processes
    rows: dict[str, CacheIndices] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, CacheIndices] = field(default_factory=dict)
    text_tokens: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, list[int | None]] = field(default_factory=dict)
    answer_tokens: dict[str, list[int]] = field(default_factory=dict)
    pivot_answer_lengths: list[int] = field(default_factory=list)
    predicting: dict[int, range] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of parallel prompts."""
        return len(self.tokens[self.pivot])

    def logits(self, states: Tensor) -> Tensor:
        """Logits of the next token from last states, shape (..., d) to (..., v), float32."""
        return logits(self.cache.model, self.cache.parts, states)


class CacheFiller:
    """Encodes rows, sends them through the frozen model and enters them into ``data``.

    ``about`` holds number and hash of the rows of every kind and language.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: Any,
        *,
        references: Literal["last", "all"],
        chat: ChatOptions | None,
        batch_size: int,
    ) -> None:
        self.data, self.cache, self.tokenizer = data, data.cache, tokenizer
        self.references, self.chat, self.batch_size = references, chat, batch_size
        self.about: dict[str, Any] = {}

    def with_prompts(self, what: str, prompts: Mapping[str, Sequence[str]]) -> TrainingData:
        """Cache this process's share of parallel prompts; return the data with them."""
        found: dict[str, CacheIndices] = {}
        tokens: dict[str, list[int]] = {}
        for lang, texts in prompts.items():
            ids = self._encoded(texts, "user")
            self._note(what, lang, ids)
            mine = self.data.processes.own(range(len(ids)))
            added = self.cache.add(
                [ids[i] for i in mine],
                keep="all" if lang == self.data.pivot else self.references,
                batch_size=self.batch_size,
                label=f"Caching {what} {lang}",
            )
            found[lang] = added if len(mine) == len(ids) else dict(zip(mine, added, strict=True))
            tokens[lang] = [len(row) for row in ids]
        return replace(self.data, rows=found, tokens=tokens)

    def add_text(self, lang: str, plain: Sequence[str]) -> None:
        """Cache text; every process keeps all of it, since any prompt may meet any text."""
        ids = self._encoded(plain, "text")
        self._note("texts", lang, ids)
        found = self.cache.add(
            ids, keep="all", batch_size=self.batch_size, label=f"Caching text {lang}"
        )
        self.data.texts[lang] = found
        self.data.text_tokens[lang] = [len(row) for row in ids]
        self.data.predicting.update(
            (i, range(len(row) - 1)) for i, row in zip(found, ids, strict=True)
        )

    def add_answers(
        self,
        lang: str,
        answers: Sequence[str | None],
        prompts: Mapping[str, Sequence[str]],
    ) -> None:
        """Cache a language's answers in the assistant's turn, with the end of the turn."""
        count = len(prompts[self.data.pivot])
        if lang not in prompts or len(answers) != count:
            given = f"{len(answers)} answers for {lang}"
            known = ", ".join(prompts)
            raise InputError(
                f"answers: got {given}, expected one (or None) for each of the {count} "
                f"prompts, in languages that have prompts ({known})"
            )
        answered = [i for i, text in enumerate(answers) if text is not None]
        found = Examples.of_answers(
            self.tokenizer,
            [prompts[lang][i] for i in answered],
            [text for text in answers if text is not None],
            self.chat,
        )
        self._note("answers", lang, found.ids)
        targets = dict(zip(answered, map(len, found.predicting), strict=True))
        self.data.answer_tokens[lang] = [targets.get(i, 0) for i in range(count)]
        if lang == self.data.pivot:
            lengths = dict(zip(answered, map(len, found.ids), strict=True))
            self.data.pivot_answer_lengths.extend(lengths.get(i, 0) for i in range(count))
        mine = [k for k, i in enumerate(answered) if self.data.processes.own([i])]
        added = self.cache.add(
            [found.ids[k] for k in mine],
            keep="all" if lang == self.data.pivot else "last",
            batch_size=self.batch_size,
            label=f"Caching answers {lang}",
        )
        places: list[int | None] = [None] * count
        for k, row in zip(mine, added, strict=True):
            places[answered[k]], self.data.predicting[row] = row, found.predicting[k]
        self.data.answers[lang] = places

    def _encoded(self, rows: Sequence[Any], role: Role) -> list[Sequence[int]]:
        """Token ids of rows; rows that are token ids already stay as they are."""
        if rows and not isinstance(rows[0], str):
            return list(rows)
        encoded = encode(self.tokenizer, rows, role=role, chat=self.chat)
        check_rows(encoded, self.cache.parts, self.cache.model)
        return [row.ids for row in encoded]

    def _note(self, what: str, lang: str, ids: Sequence[Sequence[int]]) -> None:
        """Remember which rows a run was given."""
        about = {"rows": len(ids), "sha256": rows_sha256(ids)}
        self.about.setdefault(what, {})[lang] = about
