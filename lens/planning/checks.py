"""Everything that is known of a job before it starts, and every problem that shows on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from lens.errors import InputError
from lens.models.checkpoint import DTYPES, Checkpoint
from lens.planning.config import ProbePlanSettings, TrainPlanSettings
from lens.planning.model import (
    TABLES,
    TORCH_DTYPES,
    MetaModel,
    Shape,
    Structure,
    adapter_count,
    count,
    depth_of,
    listed,
    make_meta_model,
    structure_of,
)
from lens.utils.files import said

if TYPE_CHECKING:
    from lens.models.batching import BatchLimit
    from lens.models.tokenization import ChatOptions, Role
    from lens.space.space import Space

Level = Literal["error", "warning"]
PlanRows = Mapping[str, Sequence[Any]]
T = TypeVar("T")
_BYTES_PER_TOKEN = 3  # where there is no tokenizer: coarse, and a note says so
_DRAWS = 64
_DTYPES = {name: tag for tag, name in TORCH_DTYPES.items()}
_DTYPES |= {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, or worth knowing before it is too late.

    Attributes
    ----------
    about : str
        What it concerns: ``"files"``, ``"architecture"``, ``"tokenizer"``, ``"prompts"``, ...
    text : str
        What was found, what was expected, what to do.
    level : "error" or "warning"
        An error stops the job; a warning does not.
    """

    about: str
    text: str
    level: Level = "error"


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Space that something takes on a disk.

    Attributes
    ----------
    what : str
        What is written.
    where : str
        Folder.
    nbytes, free : int
        Bytes needed, and bytes free there now.
    stays : bool
        Whether it is still there after the run.
    """

    what: str
    where: str
    nbytes: int
    free: int
    stays: bool


# ---------------------------------------------------------------- the model


def of_files(checkpoint: Checkpoint) -> list[Problem]:
    """Broken files, dtypes that do not belong together, packed weights."""
    found = [Problem("files", text) for text in checkpoint.problems]
    tensors = [(n, t.dtype) for n, t in checkpoint.tensors.items()]
    floating = Counter(dtype for _, dtype in tensors if dtype in TORCH_DTYPES)
    packed = Counter(d for n, d in tensors if d not in TORCH_DTYPES and not TABLES.search(n))
    if len(floating) > 1:
        each = ", ".join(f"{n} tensors in {dtype}" for dtype, n in floating.most_common())
        text = f"the files mix dtypes ({each}); all become {checkpoint.dtype} when they are loaded"
        found.append(Problem("dtype", text, "warning"))
    if packed:
        each = ", ".join(f"{n} in {dtype}" for dtype, n in packed.most_common())
        text = (
            f"tensors are packed ({each}); parameters are counted as they are stored, and trained "
            "blocks are unpacked first"
        )
        found.append(Problem("dtype", text, "warning"))
    if not tensors and not checkpoint.problems:
        text = (
            "there are no weights beside the config; sizes are those the config promises, and the "
            "job will need the weights"
        )
        found.append(Problem("files", text, "warning"))
    return found


def of_tokenizer(
    checkpoint: Checkpoint, structure: Structure, chat: ChatOptions | None
) -> list[Problem]:
    """Whether there is a tokenizer that fits the model, and a template."""
    if not checkpoint.tokenizer_files():
        text = (
            "there is no tokenizer beside the config (tokenizer.json or tokenizer.model); copy the "
            "model's own there"
        )
        return [Problem("tokenizer", text, "error" if checkpoint.tensors else "warning")]
    found = []
    largest = _largest_token(checkpoint)
    if largest is not None and structure.vocabulary and largest >= structure.vocabulary:
        text = (
            f"the tokenizer has ids up to {largest}, the embedding has {structure.vocabulary} "
            "rows; one of the two is another model's"
        )
        found.append(Problem("tokenizer", text))
    wanted = None if chat is None else chat.template
    if not checkpoint.has_template() and wanted is not False:
        text = "the tokenizer has no chat template"
        if wanted:
            found.append(Problem("tokenizer", f"{text}, and one was asked for"))
        else:
            found.append(Problem("tokenizer", f"{text}; prompts go in as plain text", "warning"))
    return found


def _largest_token(checkpoint: Checkpoint) -> int | None:
    try:
        content = json.loads((checkpoint.folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = (token["id"] for token in content.get("added_tokens", ()))
        return max((*ids, *added), default=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def of_structure(checkpoint: Checkpoint, structure: Structure) -> list[Problem]:
    """Compare blocks with each other, and sizes with the config."""
    found = []
    config, name, depth = checkpoint.text_config, structure.blocks_name, depth_of(checkpoint)
    if depth is not None and depth != len(structure.blocks):
        found.append(f"the config promises {depth} blocks, the files hold {len(structure.blocks)}")
    usual = Counter(inner for block in structure.blocks for inner in block)
    often = {inner for inner, n in usual.items() if 2 * n > len(structure.blocks)}
    shapes = Counter((inner, s) for block in structure.blocks for inner, s in block.items())
    for i, block in enumerate(structure.blocks):
        missing = sorted(often - block.keys())
        if missing:
            found.append(
                f"{name}.{i} lacks {listed(missing)}, which other blocks have; download the file "
                "that should hold it again"
            )
    for i, block in enumerate(structure.blocks):
        odd = [n for n, s in block.items() if n in often and 20 * shapes[n, s] < usual[n]]
        if odd:
            found.append(f"{name}.{i}: {listed(odd)} has another shape than in other blocks")
    for key, there in (("vocab_size", structure.vocabulary), ("hidden_size", structure.width)):
        promised = config.get(key)
        if isinstance(promised, int) and there and promised != there:
            found.append(f"the config says {key} {promised}, the tensors {there}")
    if not structure.embedding:
        found.append("there is no embedding among the tensors")
    if not structure.head and config.get("tie_word_embeddings") is False:
        found.append("there is no output head, and the config says that it is not the embedding")
    return [Problem("architecture", text) for text in found]


def of_architecture(checkpoint: Checkpoint, meta: MetaModel) -> list[Problem]:
    """Compare names and shapes with what the library's model of this architecture expects."""
    prefix = f"{getattr(meta.model, 'base_model_prefix', '')}."
    held = {n: t.shape for n, t in checkpoint.tensors.items() if not TABLES.search(n)}
    if meta.renamed:  # stored under other names: only the numbers can be compared
        expected, there = count(meta.shapes), count(held)
        text = f"the files hold {there:,} parameters, the architecture has {expected:,}"
        return [] if expected == there else [Problem("architecture", text)]

    def bare(name: str) -> str:
        return name.removeprefix(prefix)

    stored = {bare(name): shape for name, shape in held.items()}
    wanted = {bare(name): shape for name, shape in meta.shapes.items()}
    inside = bare(f"{meta.structure(checkpoint).blocks_name}.")
    beside = {bare(name) for name, _ in meta.model.named_buffers()} | set(map(bare, meta.tied))
    missing = [name for name in wanted if name not in stored]
    extra = [name for name in stored if name not in wanted and name not in beside]
    for name in [n for n in missing if not n.startswith(inside)]:  # a head of another name
        twin = next((n for n in extra if stored[n] == wanted[name]), None)
        if twin is not None and not twin.startswith(inside):
            missing.remove(name)
            extra.remove(twin)
    differing = [
        f"{n} {list(stored[n])} where {list(wanted[n])} is expected"
        for n in wanted
        if n in stored and stored[n] != wanted[n]
    ]
    kind = type(meta.model).__name__
    found: list[tuple[list[str], str, Level]] = [
        (
            missing,
            f"missing for {kind}: {listed(missing)}; the checkpoint is incomplete, or its config "
            "is another model's",
            "error",
        ),
        (extra, f"not part of {kind}: {listed(extra)}; loading would ignore them", "warning"),
        (differing, f"shapes differ from {kind}: {listed(differing)}", "error"),
    ]
    return [Problem("architecture", text, level) for names, text, level in found if names]


def of_space(
    space: Space, checkpoint: Checkpoint, languages: Iterable[str], sites: Iterable[str]
) -> list[Problem]:
    """Whether a space is this model's, as far as sizes tell, and has the languages and sites."""
    found = []
    lacking = [site for site in sites if site not in space.sites]
    if lacking:
        found.append(
            f"the losses read {', '.join(lacking)}, the space has {listed(space.sites)}; probe "
            "with --sites all"
        )
    absent = [lang for lang in languages if lang not in space.languages]
    if absent:
        found.append(
            f"the space has no {', '.join(absent)} (it has {', '.join(space.languages)}); probe "
            "again with these languages, or leave them out with --langs"
        )
    read = space.to_dict()["about"].get("model") or {}
    mine = {"model_type": checkpoint.config.get("model_type")}
    mine |= {k: checkpoint.text_config.get(k) for k in ("hidden_size", "num_hidden_layers")}
    mine["vocab_size"] = checkpoint.text_config.get("vocab_size")
    for key, value in mine.items():
        if value is not None and read.get(key) is not None and read[key] != value:
            found.append(f"the space is of another model: its {key} is {read[key]}, here {value}")
    return [Problem("space", text) for text in found]


# ---------------------------------------------------------------- the machine


def of_disk(uses: Sequence[DiskUse]) -> list[Problem]:
    """File systems that everything written to them together would fill."""
    together: dict[int, list[DiskUse]] = {}
    for use in uses:
        together.setdefault(_existing(Path(use.where)).stat().st_dev, []).append(use)
    found = []
    for shared in together.values():
        needed, free = sum(use.nbytes for use in shared), min(use.free for use in shared)
        if needed > free:
            each = ", ".join(f"{use.what} {said(use.nbytes)} in {use.where}" for use in shared)
            text = (
                f"{said(needed)} are needed where {said(free)} are free ({each}); free some space, "
                "or name other folders (--out, --cache, TMPDIR)"
            )
            found.append(Problem("disk", text))
    return found


def of_memory(phases: Mapping[str, int], free: int | None, advice: str) -> list[Problem]:
    """Whether the machine has what the largest phase needs; bytes by phase."""
    most = max(phases, key=lambda name: phases[name])
    if free is None or phases[most] <= free:
        return []
    text = f"phase {most} needs {said(phases[most])} of memory, {said(free)} are free"
    return [Problem("memory", f"{text}; {advice}")]


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def free_memory() -> int | None:
    """Bytes of memory that are free or can be freed; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return None


# ---------------------------------------------------------------- rows of text


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Tokens of every row, by language; row i is parallel in each.

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
        """Rows in each language."""
        return len(next(iter(self.tokens.values())))

    @property
    def total(self) -> int:
        """Tokens of all rows."""
        return sum(map(sum, self.tokens.values()))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(max, self.tokens.values()))

    def padded(self, batch: int) -> int:
        """Tokens with padding when each language runs in batches of rows of similar length."""
        total = 0
        for lengths in self.tokens.values():
            ordered = sorted(lengths, reverse=True)
            for at in range(0, len(ordered), batch):
                total += len(ordered[at : at + batch]) * ordered[at]
        return total

    def drawn(self, prompts: int) -> float:
        """Mean length that rows of ``prompts`` drawn prompts, in all languages, are padded to."""
        rng = random.Random(0)
        longest: list[int] = [max(row) for row in zip(*self.tokens.values(), strict=True)]
        size = min(prompts, len(longest))
        total: int = sum(max(rng.sample(longest, size)) for _ in range(_DRAWS))
        return total / _DRAWS


@dataclass(frozen=True, slots=True)
class RowEncoding:
    """How rows become tokens, as in `lens.models.encode`, and what is required of them."""

    role: Role = "text"
    chat: ChatOptions | None = None
    prompts: PlanRows | None = None
    max_tokens: int | None = None
    pivot: str | None = None
    min_rows: int = 1

    def cut(self, tokens: int) -> int:
        """Length of a row of ``tokens`` once cut; the end of a user prompt is never cut off."""
        longest = None if self.role == "user" else self.max_tokens
        return tokens if longest is None else min(tokens, longest)

    def encoded(self, tokenizer: Any, lang: str, texts: Sequence[str]) -> list[int]:
        """Tokens of each row of a language."""
        from lens.models.tokenization import encode

        prompts = (self.prompts or {}).get(lang)
        rows = encode(
            tokenizer,
            texts,
            role=self.role,
            prompts=prompts,
            chat=self.chat,
            max_tokens=self.max_tokens,
        )
        return [len(row.ids) for row in rows]


def _wrong_rows(named: PlanRows, noun: str, encoding: RowEncoding) -> Iterator[str]:
    """Problems of the numbers of rows and of the languages."""
    counts = {lang: len(texts) for lang, texts in named.items()}
    each = ", ".join(f"{lang}: {n}" for lang, n in counts.items())
    if len(set(counts.values())) > 1 or not all(counts.values()):
        yield (
            f"{noun} are not parallel, row counts are {each}; row i must say the same in every "
            "language"
        )
    few = [lang for lang, n in counts.items() if n < encoding.min_rows]
    if few:
        yield (
            f"too few {noun} of {', '.join(few)} ({each}); expected at least "
            f"{encoding.min_rows} of each"
        )
    if encoding.pivot is not None and encoding.pivot not in named:
        yield f"the pivot {encoding.pivot} has no {noun}; add them"
    if len(named) < 2:
        yield f"{noun} in at least one language besides the pivot are needed"


# ---------------------------------------------------------------- a whole job


R = TypeVar("R", TrainPlanSettings, ProbePlanSettings)


@dataclass(slots=True)
class JobFindings(Generic[R]):
    """Facts about a job, and every problem that shows while they are found.

    Attributes
    ----------
    checkpoint : Checkpoint
        Config and headers.
    settings : TrainPlanSettings or ProbePlanSettings
        Options of the job; with ``quick`` torch and transformers are left alone.
    problems, notes : list
        What is wrong, and assumptions behind the figures.
    meta : MetaModel or None
        The library's model.
    structure : Structure or None
        Its parts; None where they were not found.
    lengths : RowLengths or None
        Tokens of the rows.
    dtype : str
        Working dtype, as safetensors names it.
    """

    checkpoint: Checkpoint
    settings: R
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    meta: MetaModel | None = None
    structure: Structure | None = None
    lengths: RowLengths | None = None
    dtype: str = "F32"

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the working dtype."""
        return DTYPES[self.dtype].size

    @property
    def mapped(self) -> bool:
        """Whether the weights are used as they lie in the files."""
        return not self.checkpoint.tensors or self.checkpoint.dtype == self.dtype

    def add(self, about: str, text: str, level: Level = "error") -> None:
        """Note a problem."""
        self.problems.append(Problem(about, text, level))

    def attempt(self, about: str, action: Callable[[], T]) -> T | None:
        """Do something; what it refuses is a problem."""
        try:
            return action()
        except InputError as error:
            self.add(about, str(error))
            return None

    def check_model(self, *, any_kind: bool = False) -> None:
        """Find blocks in the headers, else in the config; compare the two where both exist.

        ``any_kind`` accepts encoders and multimodal models too.
        """
        checkpoint, settings = self.checkpoint, self.settings
        self.problems += of_files(checkpoint)
        if settings.dtype != "auto" and settings.dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise InputError(f"unknown dtype '{settings.dtype}'; expected auto, {known}")
        self.dtype = checkpoint.dtype if settings.dtype == "auto" else _DTYPES[settings.dtype]
        if checkpoint.tensors:
            self.structure = self.attempt("architecture", lambda: structure_of(checkpoint))
        if self.structure is not None:
            self.problems += of_structure(checkpoint, self.structure)
        if settings.quick and checkpoint.tensors:
            return
        self.meta = self.attempt(
            "architecture",
            lambda: make_meta_model(
                checkpoint,
                dtype=self.dtype,
                any_kind=any_kind,
                trust_remote_code=settings.trust_remote_code,
            ),
        )
        if self.meta is None:
            return
        if checkpoint.tensors:
            known_texts = {problem.text for problem in self.problems}
            found = of_architecture(checkpoint, self.meta)
            self.problems += [problem for problem in found if problem.text not in known_texts]
        else:
            meta = self.meta
            self.structure = self.attempt("architecture", lambda: meta.structure(checkpoint))

    def check_rows(
        self, given: PlanRows | str | Path, about: str, encoding: RowEncoding, **reading: Any
    ) -> RowLengths | None:
        """Count tokens of rows; ``reading`` goes to `lens.data.read_parallel`."""
        from lens.data.languages import canonical

        def counted() -> RowLengths | None:
            rows = self.read_rows(given, **reading)
            pivot = None if encoding.pivot is None else canonical(encoding.pivot)
            return self._lengths(rows, about, replace(encoding, pivot=pivot))

        lengths = self.attempt(about, counted)
        if lengths is not None and lengths.source == "bytes":
            self.notes.append(f"{about}: no tokenizer was used; 3 bytes of text count as a token")
        return lengths

    def read_rows(self, given: PlanRows | str | Path, **reading: Any) -> PlanRows:
        """Rows from a file or folder, or as they are, by canonical language."""
        from lens.data.corpora import read_parallel
        from lens.data.languages import canonical

        rows: PlanRows
        if isinstance(given, Mapping):
            rows = given
        else:
            options = {"limit": self.settings.limit, "min_rows": 2} | reading
            rows = read_parallel(given, languages=self.settings.languages, **options).rows
        return {canonical(lang): list(texts) for lang, texts in rows.items()}

    def _lengths(self, rows: PlanRows, about: str, encoding: RowEncoding) -> RowLengths | None:
        """Count tokens by the model's own tokenizer and template, where there are any."""
        noun = "rows" if about == "rows" else "prompts"
        self.problems += [Problem(about, text) for text in _wrong_rows(rows, noun, encoding)]
        named = {lang: texts for lang, texts in rows.items() if texts}
        if not named:
            return None
        if encoding.pivot in named:
            named = {encoding.pivot: named[encoding.pivot]} | named
        n = min(map(len, named.values()))
        named = {lang: texts[:n] for lang, texts in named.items()}
        if not isinstance(next(iter(named.values()))[0], str):
            return RowLengths({k: [len(ids) for ids in v] for k, v in named.items()}, "ids")
        if self.settings.tokens is not None:
            tokens = encoding.cut(self.settings.tokens)
            return RowLengths({lang: [tokens] * n for lang in named}, "given")
        counted = None if self.settings.quick else self._encoded(named, about, encoding)
        if counted is not None:
            return RowLengths(counted, "tokenizer")
        sizes = {
            lang: [encoding.cut(max(1, len(t.encode()) // _BYTES_PER_TOKEN)) for t in texts]
            for lang, texts in named.items()
        }
        return RowLengths(sizes, "bytes")

    def _encoded(
        self, named: PlanRows, about: str, encoding: RowEncoding
    ) -> dict[str, list[int]] | None:
        """Lengths of rows as they will be encoded; None where there is no working tokenizer."""
        if not self.checkpoint.tokenizer_files():
            return None
        from transformers import AutoTokenizer

        folder = self.checkpoint.folder
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # whatever a broken tokenizer file makes the library raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.add("tokenizer", f"the tokenizer cannot be loaded: {first}")
            return None
        found = {}
        for lang, texts in named.items():
            try:
                found[lang] = encoding.encoded(tokenizer, lang, texts)
            except InputError as error:
                self.add(about, f"{lang}: {error}")
        return found if len(found) == len(named) else None


@dataclass(slots=True)
class TrainFindings(JobFindings[TrainPlanSettings]):
    """Facts about a training run.

    Attributes
    ----------
    layers, chosen : tuple of int, dict
        Trained blocks, and the shapes of what is trained in them.
    held_out : RowLengths or None
        Tokens of the prompts for validation; ``lengths`` are those of the prompts.
    """

    layers: tuple[int, ...] = ()
    chosen: dict[str, Shape] = field(default_factory=dict)
    held_out: RowLengths | None = None

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        lora = self.settings.lora
        return count(self.chosen) if lora is None else adapter_count(self.chosen, lora)

    def check(
        self,
        prompts: PlanRows | str | Path,
        space: Space | str | Path | None = None,
        validation: PlanRows | str | Path | None = None,
    ) -> None:
        """Find everything that can be found without measuring."""
        self.check_model()
        self._check_layers()
        space = self._loaded(space)
        pivot, chat = None if space is None else space.pivot, self.settings.chat
        encoding = RowEncoding("user", chat, pivot=pivot)
        self.lengths = self.check_rows(prompts, "prompts", encoding)
        if validation is not None:
            self.held_out = self.check_rows(validation, "validation", encoding)
        if self.structure is None:
            return
        self.problems += of_tokenizer(self.checkpoint, self.structure, chat)
        if space is not None:
            sites = self.settings.losses.placed(len(self.structure.blocks)).subspace_sites
            languages = self.lengths.tokens if self.lengths else ()
            self.problems += of_space(space, self.checkpoint, languages, sites)

    def _check_layers(self) -> None:
        """Resolve layers, sites and what is trained in the blocks."""
        from lens.models.layers import block_index, resolve_layers

        if self.structure is None:
            return
        depth = len(self.structure.blocks)
        try:
            self.layers = resolve_layers(self.settings.layers, depth)
            placed = self.settings.losses.placed(depth)
            self.chosen = self.structure.chosen(self.layers, self.settings.modules)
        except InputError as error:
            self.add("layers", str(error))
            return
        below = [s for s in placed.sites if s != "final" and (block_index(s) or 0) < self.layers[0]]
        if below:
            self.add(
                "layers",
                f"the losses read {', '.join(below)}, below the first trained block "
                f"({self.layers[0]}), where training changes nothing",
            )
        self._check_adapters()

    def _check_adapters(self) -> None:
        lora, modules = self.settings.lora, self.settings.modules
        if lora is None:
            return
        linear = [shape for shape in self.chosen.values() if len(shape) == 2]
        smallest = min(linear, key=min, default=())
        if not linear or modules in ("bias", "norm"):
            self.add("lora", f"adapters go on linear layers, and modules={modules!r} selects none")
        elif lora.rank > min(smallest):
            self.add(
                "lora",
                f"LoRA rank {lora.rank} is above what a weight of shape {list(smallest)} can have; "
                f"choose one up to {min(smallest)}, or train the weights themselves",
            )

    def _loaded(self, given: Space | str | Path | None) -> Space | None:
        from lens.space.space import Space

        if given is None or isinstance(given, Space):
            return given
        try:
            return Space.load(given)
        except (InputError, OSError) as error:
            self.add("space", str(error))
            return None


@dataclass(slots=True)
class ProbeFindings(JobFindings[ProbePlanSettings]):
    """Facts about a probe.

    Attributes
    ----------
    sites : tuple of str
        Where states are read.
    limit : BatchLimit or None
        Most rows and tokens of a batch.
    """

    sites: tuple[str, ...] = ()
    limit: BatchLimit | None = None

    @property
    def file(self) -> Path:
        """Where the space will be written."""
        return self.settings.out or Path("space.safetensors")

    @property
    def work(self) -> Path:
        """Working folder of the probe."""
        return self.file.with_name(self.file.name + ".unfinished")

    def check(
        self,
        rows: PlanRows | str | Path,
        user_prompts: PlanRows | str | Path | None = None,
    ) -> None:
        """Find everything that can be found without measuring."""
        from lens.models.tokenization import ChatOptions

        settings = self.settings
        self.check_model(any_kind=True)
        if settings.layer_by_layer and "quantization_config" in self.checkpoint.config:
            self.add(
                "dtype",
                "packed weights cannot be loaded layer by layer; load the whole model, or an "
                "unpacked checkpoint of it",
            )
        self._check_settings()
        prompts = self._prompts(user_prompts)
        plain = settings.role == "text"
        role = settings.role if prompts or settings.role != "assistant" else "text"
        encoding = RowEncoding(
            role,
            None if plain else settings.chat,
            prompts,
            settings.max_tokens,
            settings.pivot,
            min_rows=2,
        )
        self.lengths = self.check_rows(
            rows,
            "rows",
            encoding,
            split=settings.split,
            column=settings.column,
            missing_rows=settings.missing_rows,
        )
        self._check_positions()
        if self.structure is not None:
            chat = ChatOptions(template=False) if plain else settings.chat
            self.problems += of_tokenizer(self.checkpoint, self.structure, chat)
            self.attempt("memory", self._check_memory)

    def _check_settings(self) -> None:
        """Sites, batches, and whether the outputs may be written."""
        from lens.models.batching import batch_limit
        from lens.models.layers import resolve_sites
        from lens.utils.files import refuse_existing

        settings, force = self.settings, self.settings.force
        if self.structure is not None:
            depth = len(self.structure.blocks)
            self.sites = self.attempt("sites", lambda: resolve_sites(settings.sites, depth)) or ()
        self.limit = self.attempt("batches", lambda: batch_limit(settings.batch_size))
        if settings.out is not None:
            from lens.models.hidden_states import CaptureJournal

            resume = settings.resume
            self.attempt("out", lambda: refuse_existing(self.file, force=force))
            self.attempt("out", lambda: CaptureJournal(self.work, resume=resume, force=force))
        if settings.keep_states is not None:
            from lens.space.state_store import check_target

            folder, dtype = settings.keep_states, settings.states_dtype
            self.attempt("states", lambda: check_target(folder, dtype, force=force))
        elif settings.select_rank:
            self.add(
                "states",
                "ranks are chosen on the states of every row; name a folder for them "
                "(--keep-states)",
            )

    def _prompts(self, given: PlanRows | str | Path | None) -> PlanRows | None:
        """User prompts by canonical language, for rows in the assistant's turn."""
        role = self.settings.role
        if given is None:
            if role == "assistant":
                text = "role assistant needs the user prompts that rows follow (--prompts)"
                self.add("prompts", text)
            return None
        if role != "assistant":
            self.add("prompts", f"prompts belong to role assistant; the role is {role}")
            return None
        return self.attempt("prompts", lambda: self.read_rows(given, limit=None, min_rows=1))

    @property
    def _config(self) -> Any:
        """Config of the text stack, the library's where there is one."""
        if self.meta is None:
            return self.checkpoint.text_config
        from lens.models.architecture import text_config

        return text_config(self.meta.model)

    def _check_positions(self) -> None:
        from lens.models.batching import number_in

        positions = number_in(self._config, "max_position_embeddings", "n_positions")
        if self.lengths is None or not positions:
            return
        every = [n for lengths in self.lengths.tokens.values() for n in lengths]
        beyond = sum(n > positions for n in every)
        if beyond:
            self.add(
                "rows",
                f"{beyond} of {len(every)} rows are longer than the {positions} positions of the "
                f"model (up to {max(every)} tokens); --max-tokens {positions} cuts them",
                "warning" if self.lengths.source == "bytes" else "error",
            )

    def _check_memory(self) -> None:
        """Tokens that a limit of memory leaves to a batch, computed as the probe does."""
        from lens.models.batching import WINDOW, require_room_for, tokens_beside
        from lens.utils.files import size_in_bytes

        settings, lengths, structure = self.settings, self.lengths, self.structure
        if settings.max_memory is None or structure is None or lengths is None:
            return
        size = size_in_bytes(settings.max_memory)
        elements = structure.parameters
        if settings.layer_by_layer:
            elements = count(structure.embedding) + count(structure.rest)
            elements += count(structure.blocks[0])
        weights = elements * self.itemsize
        if self.meta is not None:
            weights += sum(b.numel() * b.element_size() for b in self.meta.model.buffers())
        tokens = tokens_beside(
            size,
            weights,
            self._config,
            width=structure.width,
            sites=len(self.sites),
            rows=min(WINDOW, lengths.count),
            itemsize=self.itemsize,
        )
        if self.limit is not None:
            self.limit.tokens = tokens
        require_room_for(lengths.longest, tokens)
