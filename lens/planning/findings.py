"""What is known of a model, a space and rows of text before a job starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from lens.errors import InputError
from lens.models.checkpoint import DTYPES, Checkpoint
from lens.planning import checks
from lens.planning.model import (
    TORCH_DTYPES,
    BlockWork,
    MetaModel,
    Shape,
    Structure,
    adapter_count,
    count,
    make_meta_model,
    parts_of,
    structure_of,
)
from lens.planning.results import ModelSummary, Problem

if TYPE_CHECKING:
    from lens.models.batching import BatchLimit
    from lens.models.hidden_states import Pooling
    from lens.models.layers import SiteSpec
    from lens.models.tokenization import ChatOptions, Role
    from lens.space.space import Space
    from lens.space.state_store import StatesDtype
    from lens.training.config import LensConfig
    from lens.training.parameters import Lora

PlanRows = Mapping[str, Sequence[Any]]
_BYTES_PER_TOKEN = 3  # where there is no tokenizer: coarse, and said so
_DRAWS = 64


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of every row, by language; row i says the same in each.

    Attributes
    ----------
    tokens : dict of str to list of int
        The pivot first.
    source : str
        ``"tokenizer"``, ``"bytes"``, ``"given"`` or ``"ids"``.
    """

    tokens: dict[str, list[int]]
    source: str

    @property
    def count(self) -> int:
        """Prompts in each language."""
        return len(next(iter(self.tokens.values())))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(max(lengths) for lengths in self.tokens.values())

    def padded(self, batch: int) -> int:
        """Tokens that go through the model when each language is cached, rows of like length."""
        total = 0
        for lengths in self.tokens.values():
            ordered = sorted(lengths, reverse=True)
            for at in range(0, len(ordered), batch):
                total += len(ordered[at : at + batch]) * ordered[at]
        return total

    def drawn(self, prompts: int) -> float:
        """Mean length that rows of so many drawn prompts, in all languages, are padded to."""
        rng = random.Random(0)
        longest: list[int] = [max(row) for row in zip(*self.tokens.values(), strict=True)]
        size = min(prompts, len(longest))
        total: int = sum(max(rng.sample(longest, size)) for _ in range(_DRAWS))
        return total / _DRAWS


@dataclass(frozen=True, slots=True)
class Encoding:
    """How rows become tokens; as in `lens.models.encode`."""

    role: Role = "text"
    chat: ChatOptions | None = None
    prompts: PlanRows | None = None
    max_tokens: int | None = None

    def cut(self, tokens: int) -> int:
        """Length of a row of so many tokens; the end of a user prompt is never cut off."""
        longest = None if self.role == "user" else self.max_tokens
        return tokens if longest is None else min(tokens, longest)


def lengths_of(
    rows: PlanRows,
    checkpoint: Checkpoint,
    *,
    pivot: str | None,
    tokens: int | None,
    encoding: Encoding,
    quick: bool,
    what: str,
    fewest: int,
    problems: list[Problem],
) -> Lengths | None:
    """Count tokens by the model's own tokenizer and template, where they are there."""
    from lens.data.languages import canonical

    named = {canonical(lang): list(texts) for lang, texts in rows.items()}
    pivot = None if pivot is None else canonical(pivot)
    noun = "rows" if what == "rows" else "prompts"
    problems += [Problem(what, text) for text in _wrong(named, pivot, noun, fewest)]
    named = {lang: texts for lang, texts in named.items() if texts}
    if not named:
        return None
    if pivot in named:
        named = {pivot: named[pivot]} | named
    count = min(len(texts) for texts in named.values())
    named = {lang: texts[:count] for lang, texts in named.items()}
    if not isinstance(next(iter(named.values()))[0], str):
        return Lengths({lang: [len(ids) for ids in given] for lang, given in named.items()}, "ids")
    if tokens is not None:
        return Lengths({lang: [encoding.cut(tokens)] * count for lang in named}, "given")
    counted = None if quick else _encoded(named, checkpoint, encoding, what, problems)
    if counted is not None:
        return Lengths(counted, "tokenizer")
    sizes = {
        lang: [encoding.cut(max(1, len(text.encode()) // _BYTES_PER_TOKEN)) for text in texts]
        for lang, texts in named.items()
    }
    return Lengths(sizes, "bytes")


def read_rows(
    given: PlanRows | str | Path,
    *,
    languages: Sequence[str] | None,
    limit: int | None,
    split: str | None = None,
    column: str | None = None,
    incomplete: Literal["refuse", "drop"] = "refuse",
    min_rows: int = 2,
) -> PlanRows:
    """Rows from a file or folder, or as they are."""
    if isinstance(given, Mapping):
        return given
    from lens.data.corpora import read_parallel

    return read_parallel(
        given, languages=languages, limit=limit, split=split, column=column,
        incomplete=incomplete, min_rows=min_rows,
    ).rows  # fmt: skip


def _wrong(
    named: Mapping[str, Sequence[Any]], pivot: str | None, noun: str, fewest: int
) -> Iterator[str]:
    """Say what is wrong with the numbers of rows, and with the languages."""
    counts = {lang: len(texts) for lang, texts in named.items()}
    listed = ", ".join(f"{lang}: {n}" for lang, n in counts.items())
    if len(set(counts.values())) > 1 or not all(counts.values()):
        yield (
            f"{noun} are not parallel, row counts are {listed}; row i must say the same in every "
            "language"
        )
    few = [lang for lang, n in counts.items() if n < fewest]
    if few:
        yield f"too few {noun} of {', '.join(few)} ({listed}); expected at least {fewest} of each"
    if pivot is not None and pivot not in named:
        yield f"the pivot {pivot} has no {noun}; add them"
    if len(named) < 2:
        yield f"{noun} in at least one language besides the pivot are needed"


def _encoded(
    named: Mapping[str, Sequence[str]],
    checkpoint: Checkpoint,
    encoding: Encoding,
    what: str,
    problems: list[Problem],
) -> dict[str, list[int]] | None:
    """Lengths of rows as they will be encoded; None where there is no tokenizer."""
    if not checkpoint.tokenizer_files():
        return None
    from transformers import AutoTokenizer

    from lens.models.tokenization import encode

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # whatever a broken tokenizer file makes the library raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        problems.append(Problem("tokenizer", f"the tokenizer cannot be loaded: {first}"))
        return None
    found: dict[str, list[int]] = {}
    wrong = []
    for lang, texts in named.items():
        try:
            encoded = encode(
                tokenizer, texts, role=encoding.role, prompts=(encoding.prompts or {}).get(lang),
                chat=encoding.chat, max_tokens=encoding.max_tokens,
            )  # fmt: skip
        except InputError as error:
            wrong.append(Problem(what, f"{lang}: {error}"))
            continue
        found[lang] = [len(row.ids) for row in encoded]
    problems += wrong
    return None if wrong else found


_DTYPES = {
    "float32": "F32", "fp32": "F32", "bfloat16": "BF16", "bf16": "BF16", "float16": "F16",
    "fp16": "F16", "float64": "F64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """Settings that every job has."""

    languages: Sequence[str] | None = None
    limit: int | None = None
    tokens: int | None = None
    chat: ChatOptions | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False


R = TypeVar("R", bound=PlanInputs)


@dataclass(slots=True)
class Known(Generic[R]):
    """What is known of a job; every problem that shows on the way is listed.

    Attributes
    ----------
    checkpoint : Checkpoint
        Config and headers.
    request : Asked
        What is to be planned.
    quick : bool
        Whether torch and transformers are left alone.
    problems, notes : list
        What is wrong, and assumptions behind the figures.
    ghost : Ghost or None
        The model without values.
    structure : Structure or None
        Its parts; None where they were not found.
    lengths : Lengths or None
        Tokens of the rows.
    dtype : str
        Working dtype, as safetensors names it.
    """

    checkpoint: Checkpoint
    request: R
    quick: bool
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ghost: MetaModel | None = None
    structure: Structure | None = None
    lengths: Lengths | None = None
    dtype: str = "F32"

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the working dtype."""
        return DTYPES[self.dtype].size

    def look_at_model(self, *, any_kind: bool = False) -> None:
        """Find blocks in the headers, else in the config; compare the two where both are there.

        ``any_kind`` takes encoders and multimodal models too.
        """
        self.problems += checks.of_files(self.checkpoint)
        wanted = self.request.dtype
        if wanted != "auto" and wanted not in _DTYPES:
            raise InputError(f"unknown dtype '{wanted}'; expected auto, {', '.join(_DTYPES)}")
        self.dtype = self.checkpoint.dtype if wanted == "auto" else _DTYPES[wanted]
        if self.checkpoint.tensors:
            try:
                self.structure = structure_of(self.checkpoint)
                self.problems += checks.of_structure(self.checkpoint, self.structure)
            except InputError as error:
                self.problems.append(Problem("architecture", str(error)))
        if self.quick and self.checkpoint.tensors:
            return
        try:
            self.ghost = self._ghost(self.dtype, any_kind)
        except InputError as error:
            self.problems.append(Problem("architecture", str(error)))
            return
        if self.checkpoint.tensors:
            known = {problem.text for problem in self.problems}
            found = checks.of_architecture(self.checkpoint, self.ghost)
            self.problems += [problem for problem in found if problem.text not in known]
        else:
            self.structure = self.ghost.structure(self.checkpoint)

    def _ghost(self, dtype: str, any_kind: bool) -> MetaModel:
        return make_meta_model(
            self.checkpoint, dtype=dtype, any_kind=any_kind,
            trust_remote_code=self.request.trust_remote_code,
        )  # fmt: skip

    def look_at_rows(
        self,
        given: PlanRows | str | Path,
        what: str,
        *,
        pivot: str | None,
        encoding: Encoding,
        reading: dict[str, Any] | None = None,
        fewest: int = 1,
    ) -> Lengths | None:
        """Count tokens of rows called ``what``; ``reading`` goes to `lens.data.read_parallel`."""
        request = self.request
        found: list[Problem] = []
        try:
            rows = read_rows(
                given, languages=request.languages, limit=request.limit, **(reading or {})
            )
            lengths = lengths_of(
                rows, self.checkpoint, pivot=pivot, tokens=request.tokens, encoding=encoding,
                quick=self.quick, what=what, fewest=fewest, problems=found,
            )  # fmt: skip
        except InputError as error:
            found.append(Problem(what, str(error)))
            lengths = None
        self.problems += found
        if lengths is not None and lengths.source == "bytes":
            self.notes.append(f"{what}: no tokenizer was used, a token is taken as 3 bytes of text")
        return lengths

    def worked(
        self, action: Callable[[MetaModel], tuple[BlockWork, ...] | None]
    ) -> tuple[BlockWork, ...] | None:
        """Work by the model's own code on fake tensors; None where that cannot be."""
        if self.ghost is None or self.structure is None:
            return None
        done = action(self.ghost)
        if done is not None or self.dtype == "BF16":
            return done
        # Experts are multiplied by one operation that, without values, exists in bfloat16 alone.
        done = action(self._ghost("BF16", self.ghost.any_kind))
        if done is None:
            return None
        self.notes.append("activations were counted in bfloat16 and scaled")
        return tuple(work.widened(self.itemsize // DTYPES["BF16"].size) for work in done)

    @property
    def experts_used(self) -> float:
        """Share of the experts that a token is sent to."""
        config = self.checkpoint.text_config
        used = float(config.get("num_experts_per_tok") or 1)
        every = float(config.get("num_local_experts") or config.get("num_experts") or 1)
        return min(1.0, used / every)

    def described(self, *, trained: int = 0, layers: tuple[int, ...] = ()) -> ModelSummary | None:
        """Describe the model, as far as it is known."""
        if self.structure is None:
            return None
        each = sorted(self.structure.of_block)
        named = self.checkpoint.config.get("architectures")
        family = named[0] if named else self.checkpoint.config.get("model_type", "unknown")
        return ModelSummary(
            str(family), TORCH_DTYPES[self.dtype], self.structure.parameters,
            each[len(each) // 2], trained, len(each), self.structure.width,
            self.structure.vocabulary, layers,
            "headers" if self.checkpoint.tensors else "config",
        )  # fmt: skip

    def parts(self) -> tuple[Any, str]:
        """Parts of the model without values, where it can be run, and the name of its blocks."""
        if self.ghost is None:
            return None, "" if self.structure is None else self.structure.blocks_name
        try:
            parts = parts_of(self.ghost)
        except (InputError, RuntimeError):  # values decide what is run, as in a mixture of experts
            return None, self.ghost.structure(self.checkpoint).blocks_name
        return parts, parts.blocks_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(PlanInputs):
    """What is to be planned; every setting as in `lens.train`."""

    layers: str = "-2:"
    train: str = "full"
    lora: int | Lora | None = None
    losses: str | LensConfig | dict[str, Any] = "pinned"
    space: Space | str | Path | None = None
    validation: PlanRows | str | Path | None = None
    low_memory: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: int | None = None
    cache: str | Path | None = None
    max_memory: str | int | None = None
    out: str | Path | None = None
    answer_tokens: int | None = None


@dataclass(slots=True)
class TrainFindings(Known[Request]):
    """What is known of a run; `look` finds it out, and lists every problem on the way.

    Attributes
    ----------
    layers, chosen : tuple of int, dict
        Trained blocks, and the shapes of what is trained in them.
    held_out : Lengths or None
        Tokens of the prompts for validation; ``lengths`` are those of the prompts.
    """

    layers: tuple[int, ...] = ()
    chosen: dict[str, Shape] = field(default_factory=dict)
    held_out: Lengths | None = None

    @property
    def config(self) -> LensConfig:
        """Losses and optimizer settings."""
        from lens.training.config import resolve

        return resolve(self.request.losses)

    @property
    def countable(self) -> bool:
        """Whether enough is known to count work and memory."""
        return self.structure is not None and bool(self.chosen) and self.lengths is not None

    def look(self, prompts: PlanRows | str | Path) -> None:
        """Find out everything that can be found out without measuring."""
        self.look_at_model()
        self._look_at_band()
        space = self._space()
        self.lengths = self._look_at_rows(prompts, space, "prompts")
        if self.request.validation is not None:
            self.held_out = self._look_at_rows(self.request.validation, space, "validation")
        if self.structure is not None:
            self.problems += checks.of_tokenizer(self.checkpoint, self.structure, self.request.chat)
            if space is not None:
                sites = self.config.placed(len(self.structure.blocks)).subspace_sites
                rows = self.lengths.tokens if self.lengths else ()
                self.problems += checks.of_space(space, self.checkpoint, rows, sites)

    def _look_at_band(self) -> None:
        """Resolve layers, sites and what of them is trained."""
        from lens.models.layers import block_index, resolve_layers

        if self.structure is None:
            return
        depth = len(self.structure.blocks)
        try:
            self.layers = resolve_layers(self.request.layers, depth)
            placed = self.config.placed(depth)
            self.chosen = self.structure.chosen(self.layers, self.request.train)
        except InputError as error:
            self.problems.append(Problem("layers", str(error)))
            return
        below = [s for s in placed.sites if s != "final" and (block_index(s) or 0) < self.layers[0]]
        if below:
            self.problems.append(
                Problem("layers", f"the losses read {', '.join(below)}, below the first trained "
                        f"block ({self.layers[0]}), where training changes nothing")
            )  # fmt: skip
        self._look_at_adapters()

    def _look_at_adapters(self) -> None:
        if self.request.lora is None:
            return
        rank = rank_of(self.request.lora)
        linear = [s for s in self.chosen.values() if len(s) == 2]
        if rank < 1:
            text = f"the rank of a LoRA adapter is {rank}; expected 1 or more"
        elif not linear or self.request.train in ("bias", "norm"):
            text = f"adapters go on linear layers, and train={self.request.train!r} selects none"
        elif rank > min(min(shape) for shape in linear):
            smallest = min(linear, key=min)
            text = (
                f"LoRA rank {rank} is above what a weight of shape {list(smallest)} can have; "
                f"choose one up to {min(smallest)}, or train the weights themselves"
            )
        else:
            return
        self.problems.append(Problem("lora", text))

    def _space(self) -> Space | None:
        from lens.space.space import Space

        given = self.request.space
        if given is None or isinstance(given, Space):
            return given
        try:
            return Space.load(given)
        except (InputError, OSError) as error:
            self.problems.append(Problem("space", str(error)))
            return None

    def _look_at_rows(
        self, given: PlanRows | str | Path, space: Space | None, what: str
    ) -> Lengths | None:
        pivot = None if space is None else space.pivot
        return self.look_at_rows(
            given, what, pivot=pivot, encoding=Encoding("user", self.request.chat)
        )

    @property
    def model(self) -> ModelSummary | None:
        """What the model is, as far as it is known."""
        return self.described(trained=self.trained, layers=self.layers)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        lora = self.request.lora
        if lora is None:
            return count(self.chosen)
        return adapter_count(self.chosen, rank_of(lora), dora=bool(getattr(lora, "dora", False)))


def rank_of(lora: int | Lora) -> int:
    """Rank of adapters, however it was given."""
    return lora if isinstance(lora, int) else lora.rank


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest(PlanInputs):
    """What is to be planned; every setting as in `lens.probe`."""

    pivot: str = "eng_Latn"
    sites: SiteSpec = "all"
    pooling: Pooling = "mean"
    role: Role = "text"
    prompts: PlanRows | str | Path | None = None
    max_tokens: int | None = None
    batch_size: int | Literal["auto"] = "auto"
    keep_states: str | Path | None = None
    states_dtype: StatesDtype = "float16"
    choose_ranks: bool = False
    layer_by_layer: bool = False
    max_memory: str | int | None = None
    out: str | Path | None = None
    resume: bool = False
    force: bool = False
    split: str | None = None
    column: str | None = None
    incomplete: Literal["refuse", "drop"] = "refuse"

    @property
    def file(self) -> Path:
        """Where the space will be written."""
        return Path("space.safetensors") if self.out is None else Path(self.out)

    @property
    def work(self) -> Path:
        """Folder of what is finished while the probe runs."""
        return self.file.with_name(self.file.name + ".unfinished")


@dataclass(slots=True)
class ProbeFindings(Known[ProbeRequest]):
    """What is known of a probe; `look` finds it out, and lists every problem on the way.

    Attributes
    ----------
    sites : tuple of str
        Where states are read.
    limit : BatchLimit or None
        Most rows and tokens of a batch.
    """

    sites: tuple[str, ...] = ()
    limit: BatchLimit | None = field(default=None)

    @property
    def countable(self) -> bool:
        """Whether enough is known to count work and memory."""
        known = self.structure is not None and self.lengths is not None
        return known and bool(self.sites) and self.limit is not None

    @property
    def model(self) -> ModelSummary | None:
        """What the model is, as far as it is known."""
        return self.described()

    @property
    def resident(self) -> int:
        """Bytes of the weights that are there as long as the model is."""
        if self.structure is None:
            return 0
        around = count(self.structure.embedding) + count(self.structure.rest)
        one_by_one = self.request.layer_by_layer
        return self.itemsize * (around if one_by_one else self.structure.parameters)

    def look(self, rows: PlanRows | str | Path) -> None:
        """Find out everything that can be found out without measuring."""
        request = self.request
        self.look_at_model(any_kind=True)
        if request.layer_by_layer and "quantization_config" in self.checkpoint.config:
            self._add("dtype", "packed weights cannot be loaded layer by layer; load the whole "
                      "model, or an unpacked checkpoint of it")  # fmt: skip
        self._look_at_settings()
        prompts = self._prompts()
        chat = None if request.role == "text" else request.chat
        role = request.role if prompts or request.role != "assistant" else "text"
        encoding = Encoding(role, chat, prompts, request.max_tokens)
        parted = {name: getattr(request, name) for name in ("split", "column", "incomplete")}
        self.lengths = self.look_at_rows(
            rows, "rows", pivot=request.pivot, encoding=encoding, reading=parted, fewest=2
        )
        self._look_at_positions()
        if self.structure is not None:
            from lens.models.tokenization import ChatOptions

            plain = ChatOptions(template=False) if request.role == "text" else chat
            self.problems += checks.of_tokenizer(self.checkpoint, self.structure, plain)
            self._try("memory", self._look_at_memory)

    def _look_at_settings(self) -> None:
        """Sites, batches, and whether what will be written may be."""
        from lens.models.batching import batch_limit
        from lens.models.hidden_states import CaptureJournal
        from lens.models.layers import resolve_sites
        from lens.pooling import MODES
        from lens.space.state_store import check_target
        from lens.utils.files import refuse_existing

        request = self.request
        if request.pooling not in MODES:
            self._add("pooling", f"unknown pooling {request.pooling!r}; expected one of: "
                      f"{', '.join(MODES)}")  # fmt: skip
        if self.structure is not None:
            depth = len(self.structure.blocks)
            self.sites = self._try("sites", lambda: resolve_sites(request.sites, depth)) or ()
        self.limit = self._try("batches", lambda: batch_limit(request.batch_size))
        if request.out is not None:
            self._try("out", lambda: refuse_existing(request.file, force=request.force))
            resumed, forced = request.resume, request.force
            self._try("out", lambda: CaptureJournal(request.work, resume=resumed, force=forced))
        if request.keep_states is not None:
            folder = Path(request.keep_states)
            self._try(
                "states", lambda: check_target(folder, request.states_dtype, force=request.force)
            )
        elif request.choose_ranks:
            self._add("states", "ranks are chosen on the states of every row; name a folder for "
                      "them (--keep-states)")  # fmt: skip

    def _prompts(self) -> PlanRows | None:
        """User prompts by canonical language, for rows in the assistant's turn."""
        from lens.data.languages import canonical

        given, role = self.request.prompts, self.request.role
        if given is None:
            if role == "assistant":
                self._add("prompts", "role assistant needs the user prompts that rows follow "
                          "(--prompts)")  # fmt: skip
            return None
        if role != "assistant":
            self._add("prompts", f"prompts belong to role assistant; the role is {role}")
            return None
        languages = self.request.languages

        def read() -> PlanRows:
            rows = read_rows(given, languages=languages, limit=None, min_rows=1)
            return {canonical(lang): texts for lang, texts in rows.items()}

        return self._try("prompts", read)

    @property
    def config(self) -> Any:
        """Config of the text stack, the library's where it is there."""
        if self.ghost is None:
            return self.checkpoint.text_config
        from lens.models.architecture import text_config

        return text_config(self.ghost.model)

    def _look_at_positions(self) -> None:
        from lens.models.batching import number_in

        positions = number_in(self.config, "max_position_embeddings", "n_positions")
        if self.lengths is None or not positions:
            return
        every = [n for lengths in self.lengths.tokens.values() for n in lengths]
        beyond = sum(n > positions for n in every)
        if beyond:
            self._add(
                "rows", f"{beyond} of {len(every)} rows are longer than the {positions} positions "
                f"of the model (up to {max(every)} tokens); --max-tokens {positions} cuts them",
                "warning" if self.lengths.source == "bytes" else "error",
            )  # fmt: skip

    def _look_at_memory(self) -> None:
        """Tokens that a limit of memory leaves to a batch, reckoned as the probe does."""
        from lens.models.batching import WINDOW, require_room_for, tokens_beside
        from lens.utils.files import size_in_bytes

        request, lengths, structure = self.request, self.lengths, self.structure
        if request.max_memory is None or structure is None or lengths is None:
            return
        size = size_in_bytes(request.max_memory)
        weights = self.resident
        if request.layer_by_layer:
            weights += count(structure.blocks[0]) * self.itemsize
        if self.ghost is not None:
            weights += sum(b.numel() * b.element_size() for b in self.ghost.model.buffers())
        tokens = tokens_beside(
            size, weights, self.config, width=structure.width, sites=len(self.sites),
            rows=min(WINDOW, lengths.count), itemsize=self.itemsize,
        )  # fmt: skip
        if self.limit is not None:
            self.limit.tokens = tokens
        require_room_for(lengths.longest, tokens)

    def _try(self, about: str, action: Callable[[], T]) -> T | None:
        """Do something; what it refuses is a problem."""
        try:
            return action()
        except InputError as error:
            self._add(about, str(error))
            return None

    def _add(self, about: str, text: str, level: Literal["error", "warning"] = "error") -> None:
        self.problems.append(Problem(about, text, level))
