"""Supervised fine-tuning: on answers, on plain text, of whole models or key neurons only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lens import __version__
from lens.data.readers import ReadResult, kind, read_lines
from lens.errors import InputError
from lens.models.architecture import locate, logits
from lens.models.fingerprint import model_fingerprint
from lens.models.hidden_states import check_rows
from lens.models.layers import resolve_layers
from lens.models.offload import require_whole
from lens.models.prefix_cache import PrefixCache
from lens.models.quantization import is_quantized
from lens.models.tokenization import ChatOptions, EncodedRow, encode, pad_id_of
from lens.training.config import FinetuneSettings, ModuleSettings, OptimizerSettings
from lens.training.data import Examples
from lens.training.key_neurons import KeyNeuronMasters, KeyNeurons, put_back
from lens.training.optimizer import Entry, MasterWeights, Optimization, draws, only_trainable
from lens.training.parameters import Trainable, adapted
from lens.training.result import write_checkpoint, write_run
from lens.utils.files import new_folder
from lens.utils.settings import takes


@dataclass(frozen=True, slots=True)
class SupervisedResult:
    """A finished tuning; the model holds its weights, or carries its adapters.

    Attributes
    ----------
    log : list of dict
        One entry per step, with ``loss``.
    trainable : Trainable
        What was trained.
    """

    log: list[dict[str, float]]
    trainable: Trainable

    def release(self) -> None:
        """Take adapters off; weights that were tuned themselves stay as they are."""
        self.trainable.release()


@takes(ModuleSettings)
def finetune(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    answers: Mapping[str, Sequence[str]],
    *,
    config: OptimizerSettings,
    chat: ChatOptions | None = None,
    seed: int = 0,
    settings: ModuleSettings,
) -> SupervisedResult:
    """Tune blocks in place to answer prompts with given answers.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer; the model is trained in place.
    prompts, answers : mapping of str to sequence of str
        Per language, row i of answers answers row i of prompts; parallel across languages.
    config : OptimizerSettings
        Such as a `LensConfig`, whose loss terms are not used.
    chat : ChatOptions, optional
        Chat template flags.
    seed : int
        Decides the order of prompts.

    Returns
    -------
    SupervisedResult

    Raises
    ------
    InputError
        If answers are missing for a language or not as many as its prompts, ``modules`` selects
        nothing, or the loss stops being finite (adapters are then taken off).
    """
    for lang, rows in prompts.items():
        if len(answers.get(lang, ())) != len(rows):
            raise InputError(
                f"{lang} has {len(rows)} prompts and {len(answers.get(lang, ()))} answers; "
                "give one answer per prompt"
            )
    require_whole(model)
    parts = locate(model)
    chosen = resolve_layers(settings.layers, len(parts.blocks))
    trainable = Trainable(model, parts, chosen, modules=settings.modules, lora=settings.lora)
    cache = PrefixCache(model, parts, first_block=min(chosen))
    by_language = {
        lang: Examples.of_answers(tokenizer, rows, answers[lang], chat)
        for lang, rows in prompts.items()
    }
    for lang, found in by_language.items():
        cache.add(found.ids, label=f"Caching answers {lang}")
    count = len(next(iter(by_language.values())))
    predicting = [at for found in by_language.values() for at in found.predicting]

    def rows_of(drawn: list[int]) -> list[int]:
        return [k * count + i for k in range(len(by_language)) for i in drawn]

    def answer_tokens(drawn: list[int]) -> int:
        return sum(len(predicting[row]) for row in rows_of(drawn))

    def loss_of(drawn: list[int], whole: list[int]) -> tuple[Tensor, Entry]:
        rows = rows_of(drawn)
        batch = cache.batch(rows)
        states = cache.forward(batch)["final"]
        picked = [(b, t) for b, row in enumerate(rows) for t in predicting[row]]
        at, step = torch.tensor(picked, device=states.device).T
        value = cross_entropy(logits(model, parts, states[at, step]), batch.input_ids[at, step + 1])
        if len(drawn) < len(whole):  # a mean over tokens, shared out by prompts
            value = value * (answer_tokens(drawn) / answer_tokens(whole) * len(whole) / len(drawn))
        return value, {"loss": float(value.detach())}

    parameters = list(trainable.activate().values())
    order = draws(count, config.batch_size, seed)
    try:
        with only_trainable(model, parameters):
            steps = Optimization(parameters, config, order=order, dtype=model.dtype)
            return SupervisedResult(list(steps.remaining(loss_of)), trainable)
    except BaseException:
        trainable.release()
        raise


_SHOWN = 3


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
            i
            for i, row in enumerate(rows, 1)
            if not (isinstance(row, dict) and isinstance(row.get("text"), str))
        ]
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
    return Examples.of_answers(tokenizer, prompts, answers, chat)


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
    found = ReadResult(source=str(path))
    lines = read_lines(Path(path).expanduser(), found)
    if found.problems:
        raise InputError("; ".join(found.problems))
    return lines


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


_FINETUNE_CARD = """# Tuned model

`{source}`, tuned by lens {version} in {steps} steps on {rows} rows{replay}. {keys}

`reproduce.json` holds every setting and the hashes of what was read, `metrics.jsonl` the loss of
every step.
"""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """A finished tuning; the model holds its weights.

    Attributes
    ----------
    model, tokenizer
        As given; the model is changed in place.
    changed : dict of str to Tensor
        Its trained parameters by name.
    log : list of dict
        One entry per step: ``loss`` in nats a token, and ``loss_replay`` where there is replay.
    settings : FinetuneSettings
    seed : int
    seconds : float
        Wall time of the steps.
    about : dict
        Base model, corpora and key neurons, as numbers and hashes.
    """

    model: Any
    tokenizer: Any
    changed: dict[str, Tensor]
    log: list[dict[str, float]]
    settings: FinetuneSettings
    seed: int
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, out: str | Path, *, force: bool = False) -> None:
        """Write a Hugging Face checkpoint, the log and ``reproduce.json``: all or nothing.

        Raises
        ------
        InputError
            If ``out`` exists and ``force`` is false, or it cannot be written.
        """
        facts: dict[str, Any] = {
            "seed": self.seed,
            "settings": self.settings.model_dump(mode="json"),
            "seconds": round(self.seconds, 3),
            **self.about,
        }
        try:
            with new_folder(out, force=force) as folder:
                facts["checkpoint"] = write_checkpoint(
                    self.model, self.tokenizer, folder, changed=self.changed, widen=True
                )
                write_run(folder, self.log, facts, self._card())
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror or error}; make room") from None

    def _card(self) -> str:
        settings, keys = self.settings, self.about["keys"]
        trained = "All weights were trained."
        if settings.modules is not None:
            trained = f"Of the blocks {settings.layers}, {settings.modules} was trained."
        if keys is not None:
            how = {"mask": "were trained", "revert": "keep their trained values"}[keys["how"]]
            trained = f"{keys['n']} key elements alone {how} (MAEC, arXiv 2410.07825)."
        share = f", {settings.replay_share:.0%} of each batch general text"
        return _FINETUNE_CARD.format(
            source=Path(self.model.name_or_path or "an unnamed model").name,
            version=__version__,
            steps=settings.steps,
            rows=self.about["corpus"]["rows"],
            replay=share if self.about["replay"] else "",
            keys=trained,
        )


def finetune_corpus(
    model: Any,
    tokenizer: Any,
    corpus: Examples,
    *,
    settings: FinetuneSettings,
    replay: Examples | None = None,
    keys: KeyNeurons | None = None,
    how: Literal["mask", "revert"] = "mask",
    seed: int = 0,
) -> FinetuneResult:
    """Tune a model in place; the loss is the mean over rows of a row's mean cross-entropy.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder in floating point and its tokenizer.
    corpus : Examples
        What is learnt.
    settings : FinetuneSettings
        Steps, rates, share of the replay.
    replay : Examples, optional
        General text, ``settings.replay_share`` of the rows of each batch.
    keys : KeyNeurons, optional
        Key neurons; all other elements keep their bits.
    how : {"mask", "revert"}
        Train key neurons alone, with an optimizer that holds no others; or train everything and
        put the others back at the end.
    seed : int
        Decides the order of rows.

    Returns
    -------
    FinetuneResult

    Raises
    ------
    InputError
        If the model cannot be trained, has no such parts or is not the one the keys are of, replay
        is wanted and not given or given and not wanted, or training diverges; weights are then
        those before.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    if (replay is not None) != (settings.replay_share > 0):
        raise InputError(
            "replay needs both general text and a share above 0 of the rows of each batch; got "
            f"{'no text' if replay is None else 'text'} and the share {settings.replay_share:g}"
        )
    named = _trainable(model, settings)
    places = None
    if keys is not None:
        places = {name: at for name, at in keys.of(model).items() if name in named}
    if places is not None and not places:
        raise InputError("there are no key neurons in what is trained; raise k1 or train more")
    rows = _Rows(corpus, replay, settings)
    rows.check(model)
    about = {
        "base": model_fingerprint(model),
        "corpus": corpus.about(),
        "replay": None if replay is None else replay.about(),
        "keys": None if keys is None else {"sha256": keys.sha256, "n": keys.count, "how": how},
    }
    masked = places if how == "mask" else None
    chosen = named if masked is None else {name: named[name] for name in masked}
    before = {name: p.detach().clone() for name, p in chosen.items()}
    started = time.perf_counter()
    try:
        log = _fit(model, tokenizer, chosen, rows, masked=masked, settings=settings, seed=seed)
    except BaseException:
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(before[name])
        raise
    if places is not None and how == "revert":
        put_back(chosen, before, places)
        chosen = {name: named[name] for name in places}
    changed = {name: p.detach() for name, p in chosen.items()}
    return FinetuneResult(
        model, tokenizer, changed, log, settings, seed, time.perf_counter() - started, about
    )


class _Rows:
    """Rows of the corpus, then those of the replay, and how batches are drawn from both."""

    def __init__(
        self, corpus: Examples, replay: Examples | None, settings: FinetuneSettings
    ) -> None:
        parts = [corpus] if replay is None else [corpus, replay]
        self.ids = [ids for part in parts for ids in part.ids]
        self.predicting = [at for part in parts for at in part.predicting]
        self.own, self.settings = len(corpus), settings

    def check(self, model: Any) -> None:
        """Refuse rows that the model cannot take."""
        encoded = [EncodedRow(tuple(ids), 0, len(ids)) for ids in self.ids]
        check_rows(
            encoded,
            locate(model),
            model,
            advice="cut text shorter with row_tokens (--row-tokens), or leave such prompts out",
        )
        if not all(len(at) for at in self.predicting):
            raise InputError("a row has nothing to learn; rows of text need two tokens or more")

    def drawn(self, seed: int) -> Iterator[list[int]]:
        """Batches: a shuffle of the corpus, and beside it one of the replay."""
        k = self.settings.replayed
        mine = draws(self.own, self.settings.batch_size - k, seed)
        if not k:
            yield from mine
        others = draws(len(self.ids) - self.own, k, seed + 1)
        while True:
            yield [*next(mine), *(self.own + i for i in next(others))]

    def batch(self, drawn: Sequence[int], pad: int, device: Any) -> tuple[Tensor, Tensor]:
        """Token ids padded on the right, and where they are real."""
        longest = max(len(self.ids[i]) for i in drawn)
        ids = torch.full((len(drawn), longest), pad)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(drawn):
            ids[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            mask[row, : len(self.ids[i])] = 1
        return ids.to(device), mask.to(device)


def _fit(
    model: Any,
    tokenizer: Any,
    trained: dict[str, Tensor],
    rows: _Rows,
    *,
    masked: dict[str, Tensor] | None,
    settings: FinetuneSettings,
    seed: int,
) -> list[Entry]:
    pad, device = pad_id_of(tokenizer), next(iter(trained.values())).device
    parameters = list(trained.values())

    def loss_of(drawn: list[int], _whole: list[int]) -> tuple[Tensor, Entry]:
        ids, mask = rows.batch(drawn, pad, device)
        picked = [(r, t) for r, i in enumerate(drawn) for t in rows.predicting[i]]
        at = torch.tensor(picked, device=device).T
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.autocast):
            found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        each = cross_entropy(found[at[0], at[1]].float(), ids[at[0], at[1] + 1], reduction="none")
        lengths = torch.tensor([len(rows.predicting[i]) for i in drawn], device=device)
        by_row = each.new_zeros(len(drawn)).index_add(0, at[0], each) / lengths
        value = by_row.mean()
        entry = {"loss": float(value.detach())}
        replayed = [r for r, i in enumerate(drawn) if i >= rows.own]
        if settings.replay_share:  # its part of the loss
            entry["loss_replay"] = float(by_row.detach()[replayed].sum()) / len(drawn)
        return value, entry

    masters = (
        MasterWeights(parameters)
        if masked is None
        else KeyNeuronMasters(parameters, [masked[name] for name in trained])
    )
    with only_trainable(model, parameters):
        steps = Optimization(
            parameters, settings, order=rows.drawn(seed), dtype=model.dtype, masters=masters
        )
        return list(steps.remaining(loss_of))


def _trainable(model: Any, settings: FinetuneSettings) -> dict[str, Tensor]:
    """Trained parameters by name; refuse a model that cannot be trained itself."""
    require_whole(model)
    if adapted(model):
        raise InputError("the model carries adapters; merge them first (merge_and_unload in PEFT)")
    packed = [name for name, module in model.named_modules() if is_quantized(module)]
    if packed:
        raise InputError(
            f"the model has packed weights ({packed[0]}), which cannot be trained themselves; "
            "load it in bfloat16 or float32"
        )
    if settings.modules is None:
        return {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    parts = locate(model)
    layers = resolve_layers(settings.layers, len(parts.blocks))
    return dict(Trainable(model, parts, layers, modules=settings.modules).activate())
