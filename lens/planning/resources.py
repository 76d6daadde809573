"""FLOPs, memory and disk of a job, by formula from the shapes of its model; within about 30 %."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens.errors import InputError
from lens.planning import checks
from lens.planning.checks import DiskUse, ProbeFindings, Problem, RowLengths, TrainFindings
from lens.planning.model import CONV1D, TORCH_DTYPES, Shape, Structure, count, experts_used
from lens.utils.files import said

if TYPE_CHECKING:
    from lens.models.batching import BatchLimit
    from lens.training.config import LensConfig

# Python with torch, transformers and lens at work, before any weight: measured, Linux, torch 2.13.
LIBRARIES = 460_000_000
CACHE_BATCH = 32  # rows per batch that `lens.training.LensTrainer` caches
# glibc maps blocks from this size on and returns them at once; smaller ones stay in its heap.
_LARGE_BLOCK = 32 << 20
_FLOAT = 4
_STATE = 8  # bytes: statistics and pooled states are in float64
_TOKEN_ID = 8
# States alive at once in the frozen model: in widths, and in widths of the feed-forward part.
_ALIVE_WIDTHS, _ALIVE_INNER = 4, 3
# Peak of a backward pass, in inputs and outputs of all matrices: norms, gates and attention keep
# more than these, and gradients of states come on top.
_KEPT = 1.45
_USUAL_TENSORS = 40  # alive at the peak of a pass
# Shares of what was freed that the heap did not use again, measured with glibc (docs/planning.md).
_UNUSED_OF_ACTIVATIONS = 0.25
_UNUSED_OF_OPTIMIZER = 0.9
_CHECKPOINTS = 3  # the last two, and one that is being written
_LOGGED_COPIES = 2  # of a batch's pooled states while it is logged
_FILE_COPIES = 4  # while a space is saved: its arrays, their bytes, and the file twice
_TOKENIZER = 18  # times the bytes of its file, in memory: as measured
# What AdamW with clipping moves per element: reads and writes in float32, as torch does them.
_BYTES_PER_UPDATE = 80
# An ordinary machine, where nothing is given: bytes per second of its memory and of its disk, and
# seconds that transformers takes per tensor to open a checkpoint.
_BANDWIDTH, _DISK, _OPENING = 1e10, 2e9, 4e-4
# Share of the FLOPs per second of one matrix product that whole blocks reach.
_SHARE = 0.8
_READING = 0.05  # seconds
_ENTRY = 96  # bytes of an entry in a header, name included
_RECORD = 900  # bytes of text per language and per site in the records of a space


# ---------------------------------------------------------------- one pass of a model


@dataclass(frozen=True, slots=True)
class PassCost:
    """FLOPs of a pass, and the most bytes of new tensors alive at one time."""

    flops: int
    nbytes: int

    @property
    def heap(self) -> int:
        """Bytes of these tensors that are small enough for the heap of the C library."""
        return self.nbytes if self.nbytes < _USUAL_TENSORS * _LARGE_BLOCK else 0


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Size of one forward and backward pass.

    Attributes
    ----------
    prompts, languages : int
        Prompts in a pass, and languages of each, the pivot among them.
    tokens : int
        Tokens of every row, padding included.
    answer_tokens : int
        Tokens of a row with prompt and answer, for terms on answers or text.
    """

    prompts: int
    languages: int
    tokens: int
    answer_tokens: int

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return self.prompts * self.languages


def block_flops(block: Mapping[str, Shape], tokens: int, share: float = 1.0) -> int:
    """FLOPs per token of one block at sequence length ``tokens``.

    Two for each weight of a matrix (``share`` of those of experts) and 4 T d for attention.
    """
    matrices = sum(
        2 * prod(shape) * (share if "experts" in name else 1.0)
        for name, shape in block.items()
        if len(shape) > 1
    )
    width = max((shape[0] for shape in block.values() if len(shape) == 1), default=0)
    return int(matrices + 4 * tokens * width)


def forward_cost(
    structure: Structure, *, rows: int, tokens: int, itemsize: int, share: float = 1.0
) -> PassCost:
    """Cost of rows through the frozen model, without logits.

    Parameters
    ----------
    structure : Structure
        Shapes of the model.
    rows, tokens : int
        Size of the batch, padding included.
    itemsize : int
        Bytes of an element in the working dtype.
    share : float
        Share of the experts that a token is sent to.
    """
    flops = sum(block_flops(block, tokens, share) for block in structure.blocks) * rows * tokens
    inner = max(
        shape[-2 if CONV1D.search(name) else -1]
        for block in structure.blocks
        for name, shape in block.items()
        if len(shape) > 1
    )
    alive = _ALIVE_WIDTHS * structure.width + _ALIVE_INNER * inner
    return PassCost(flops, rows * tokens * itemsize * alive)


def step_cost(
    structure: Structure,
    first_block: int,
    config: LensConfig,
    batch: StepBatch,
    *,
    itemsize: int,
    share: float = 1.0,
    checkpointing: bool = False,
) -> PassCost:
    """Cost of one forward and backward pass of a training step.

    Parameters
    ----------
    structure : Structure
        Shapes of the model.
    first_block : int
        First trained block; those from it on are run.
    config : LensConfig
        Its terms over the vocabulary add the output head.
    batch : StepBatch
        Size of the pass.
    itemsize, share
        As in `forward_cost`.
    checkpointing : bool
        Whether activations are computed again in the backward pass.
    """
    blocks = structure.blocks[first_block:]
    places = [(batch.rows, batch.tokens)]
    flops = nbytes = 0
    for term in config.active:
        needs = term.needs
        if not needs.logits:
            continue
        on_answers = needs.rows == "answers"
        rows = batch.prompts * (1 if needs.pivot_only else batch.languages - 1)
        if needs.rows != "prompts":
            places.append((rows, batch.answer_tokens))
        predicted = batch.answer_tokens if on_answers else batch.tokens
        if on_answers and not needs.pivot_only:  # only the answer is predicted
            predicted -= batch.tokens
        flops += 6 * rows * predicted * structure.width * structure.vocabulary
        nbytes += 4 * _FLOAT * rows * predicted * structure.vocabulary
    each = [_KEPT * _widths(block, share) for block in blocks]
    kept = max(each) + structure.width * len(each) if checkpointing else sum(each)
    for rows, tokens in places:
        flops += 3 * rows * tokens * sum(block_flops(block, tokens, share) for block in blocks)
        nbytes += int(rows * tokens * itemsize * (kept + 2 * structure.width))
    return PassCost(flops, nbytes)


def _widths(block: Mapping[str, Shape], share: float) -> float:
    """Elements that enter and leave the matrices of a block for one token."""
    total = 0.0
    for name, shape in block.items():
        if len(shape) > 1:
            experts = share * prod(shape[:-2]) if "experts" in name else 1.0
            total += experts * (shape[-1] + shape[-2])
    return total


# ---------------------------------------------------------------- speeds


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds that turn costs into time.

    Attributes
    ----------
    forward : float
        FLOPs per second of the frozen model.
    training : float or None
        FLOPs per second of forward and backward passes together.
    bandwidth : float or None
        Bytes per second that the optimizer moves.
    source : "measured" or "given"
        Where they come from.
    about : str
        What was measured.
    reading : float or None
        Bytes per second of the checkpoint's disk, with nothing of it in memory.
    """

    forward: float
    training: float | None = None
    bandwidth: float | None = None
    source: Literal["measured", "given"] = "given"
    about: str = ""
    reading: float | None = None

    def __post_init__(self) -> None:
        """Refuse a rate that is none."""
        for name in ("forward", "training", "bandwidth", "reading"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise InputError(f"rate {name} is {rate}; expected more than 0")


def measure_rates(structure: Structure, dtype: str) -> Rates:
    """Time one matrix product of the model's sizes, in less than a tenth of a second.

    Parameters
    ----------
    structure : Structure
        The largest matrix of a block is multiplied by 256 rows; its sides are cut at 2048.
    dtype : str
        Working dtype, as safetensors names it.

    Returns
    -------
    Rates
        An estimate for this machine at this moment. Speeds of memory and disk are those of an
        ordinary machine.
    """
    import torch

    working = getattr(torch, TORCH_DTYPES[dtype])
    matrices = [shape for shape in structure.blocks[-1].values() if len(shape) == 2]
    n_in, n_out = (min(side, 2048) for side in max(matrices, key=prod, default=(1024, 1024)))
    rows = torch.full((256, n_in), 0.01, dtype=working)
    weight = torch.full((n_in, n_out), 0.01, dtype=working)
    best, total = float("inf"), 0.0
    while total < _READING:
        started = time.perf_counter()
        rows @ weight
        taken = time.perf_counter() - started
        best, total = min(best, taken), total + taken
    rate = _SHARE * 2.0 * rows.numel() * n_out / best
    threads = torch.get_num_threads()
    about = (
        f"one matrix product in {TORCH_DTYPES[dtype]}, {threads} thread{'s' if threads > 1 else ''}"
    )
    return Rates(rate, rate, _BANDWIDTH, "measured", about, _DISK)


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Cost of a part of a job, and how long it takes where that could be estimated.

    Attributes
    ----------
    name : str
        ``"cache"``, ``"steps"`` or ``"validation"`` of training; ``"probe"``, ``"read"`` (the
        weights, from the disk) or ``"open"`` (the checkpoint, once per block) of a probe.
    flops : int
        Of matrix products and attention.
    traffic : int
        Bytes moved by the optimizer, or read.
    seconds : float or None
        Estimate; None without rates.
    """

    name: str
    flops: int
    traffic: int
    seconds: float | None


# ---------------------------------------------------------------- phases of a job


@dataclass(frozen=True, slots=True)
class Phase:
    """Memory during one part of a job.

    Attributes
    ----------
    name : str
        ``"load"``, ``"cache"``, ``"train"``, ``"probe"`` or ``"save"``.
    parts : dict of str to int
        Bytes of each part.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def _phases(each: Mapping[str, Mapping[str, int]]) -> tuple[Phase, ...]:
    """Phases of named parts, with the libraries in each and without empty parts."""
    return tuple(
        Phase(name, {p: size for p, size in {"libraries": LIBRARIES, **parts}.items() if size})
        for name, parts in each.items()
    )


def _uses(*uses: tuple[str, Path, int, bool]) -> tuple[DiskUse, ...]:
    """Space that is needed, with what is free there."""
    return tuple(
        DiskUse(what, str(where), size, checks.free_disk(where), stays)
        for what, where, size, stays in uses
        if size
    )


# ---------------------------------------------------------------- training


class TrainSizing:
    """Memory, disk and time of a training run, from its checked facts."""

    def __init__(self, found: TrainFindings, structure: Structure, lengths: RowLengths) -> None:
        self.found, self.structure, self.lengths = found, structure, lengths
        self.config, settings = found.settings.losses, found.settings
        prompts = self.config.rows_per_pass
        answers = settings.answer_tokens or lengths.longest
        longest = lengths.longest
        self.batch = StepBatch(prompts, len(lengths.tokens), longest, longest + answers)
        self.cached_rows = min(CACHE_BATCH, lengths.count)
        per_element = {"itemsize": found.itemsize}
        share = experts_used(found.checkpoint)
        self.forward = forward_cost(
            structure, rows=self.cached_rows, tokens=longest, share=share, **per_element
        )
        self.step = step_cost(
            structure,
            min(found.layers),
            self.config,
            self.batch,
            share=share,
            checkpointing=settings.running.gradient_checkpointing,
            **per_element,
        )

    @property
    def on_answers(self) -> bool:
        """Whether a loss reads answers."""
        return "answers" in self.config.read_rows

    @property
    def trained_itemsize(self) -> int:
        """Bytes of a trained element in the model; adapters are in float32."""
        return self.found.itemsize if self.found.settings.lora is None else _FLOAT

    @property
    def unused(self) -> tuple[dict[str, Shape], ...]:
        """Parts that steps do not need, apart from a head that a loss reads."""
        below = self.structure.blocks[: min(self.found.layers)]
        return (*below, self.structure.embedding, self.structure.head)

    def phases(self) -> tuple[Phase, ...]:
        """Memory of every phase."""
        found, settings, itemsize = self.found, self.found.settings, self.found.itemsize
        low, unused = settings.low_memory, self.unused
        weights = self.structure.parameters * itemsize
        largest = _largest(self.structure.parts) * itemsize
        idle = _largest(unused) * itemsize
        needed = weights - sum(map(count, unused)) * itemsize
        states, trained = self._states_in_memory(), found.trained * self.trained_itemsize
        loading = {"weights": largest if low and self.found.mapped else weights}
        if not self.found.mapped:  # a conversion holds the files' pages beside its result
            loading["pages of the files"] = found.checkpoint.nbytes
        caching = {
            "weights": weights if not low else largest if self.found.mapped else needed + idle,
            "cached states": states,
            "activations": self.forward.nbytes,
        }
        head = idle if any(t.needs.logits for t in self.config.active) else 0
        held = {
            "weights": needed + head if low else weights,
            "adapters": trained if settings.lora is not None else 0,
            "original of the trained weights": 0 if low else trained,
            "best weights so far": trained if found.held_out is not None else 0,
        }
        stepping = held | self._stepping() | {"cached states": states}
        saving = {**held, "trained weights, copied": trained, "cached states": states}
        return _phases({"load": loading, "cache": caching, "train": stepping, "save": saving})

    def _stepping(self) -> dict[str, int]:
        """Bytes that steps add: moments from the first step on, gradients during a step."""
        n, adapters = self.found.trained, self.found.settings.lora is not None
        tensors = [] if adapters else list(map(prod, self.found.chosen.values()))
        small = n if adapters else sum(size for size in tensors if size * _FLOAT < _LARGE_BLOCK)
        gradients = _FLOAT * n
        passing = max(self.step.nbytes, gradients + 2 * _FLOAT * max(tensors, default=0))
        if self.config.batch_size > self.batch.prompts:  # gradients of earlier passes stay
            passing = max(passing, gradients + self.step.nbytes)
        numbers = 2
        if self.trained_itemsize < _FLOAT:  # float32 copies; gradients are widened one by one
            numbers = 3
            passing = max(passing, gradients + n * self.trained_itemsize)
        unused = _UNUSED_OF_ACTIVATIONS * self.step.heap
        unused += _UNUSED_OF_OPTIMIZER * (numbers + 1) * _FLOAT * small
        return {
            "optimizer": numbers * _FLOAT * n,
            "gradients": gradients,
            "activations": passing - gradients,
            "freed, not returned": int(unused),
        }

    def states(self) -> int:
        """Bytes of cached states: what enters the trained layers, and references at their sites."""
        config, width = self.config, self.structure.width * self.found.itemsize
        sites = len(config.placed(len(self.structure.blocks)).sites)
        total = 0
        for lengths in filter(None, (self.lengths, self.found.held_out)):
            for i, tokens in enumerate(lengths.tokens.values()):
                whole = i == 0 or config.references == "all"
                kept = sum(tokens) if whole else len(tokens)
                total += (sum(tokens) + sites * kept) * width + sum(tokens) * _TOKEN_ID
        if self.on_answers:
            rows = self.lengths.count * len(self.lengths.tokens)
            pivot = self.lengths.count * self.batch.answer_tokens
            total += rows * self.batch.answer_tokens * (width + _TOKEN_ID)
            total += (pivot + rows) * sites * width
        return total

    def _states_in_memory(self) -> int:
        """Bytes of cached states that stay in memory: none with a folder or above a limit."""
        states, left = self.states(), self.limit()
        if self.found.settings.cache is not None:
            return 0
        return states if left is None or states <= left else 0

    def limit(self) -> int | None:
        """Bytes that --max-memory leaves for states, as training computes it; None without one."""
        from lens.utils.files import size_in_bytes

        settings, itemsize = self.found.settings, self.found.itemsize
        if settings.max_memory is None:
            return None
        idle = [count(part) * itemsize for part in self.unused if settings.low_memory]
        training = 4 * _FLOAT * self.found.trained
        needed = self.structure.parameters * itemsize - sum(idle) + max([training, *idle])
        return size_in_bytes(settings.max_memory) - needed

    def disk(self) -> tuple[DiskUse, ...]:
        """Everything that is written, and where."""
        settings, trained = self.found.settings, self.found.trained
        temporary = Path(tempfile.gettempdir())
        out = (settings.out or Path("lens-out")).parent
        itemsize = self.trained_itemsize
        uses = [("spilled weights", temporary, self._spilled(), False)]
        if settings.cache is not None:
            uses.append(("cached states", settings.cache, self.states(), True))
        elif not self._states_in_memory():
            uses.append(("cached states", temporary, self.states(), False))
        uses.append(("result", out, self._result(), True))
        if settings.running.checkpoint_every is not None:
            moments = (2 if itemsize == _FLOAT else 3) * _FLOAT
            uses.append(("checkpoints", out, _CHECKPOINTS * trained * (itemsize + moments), False))
        elif settings.out is not None:
            uses.append(("finished training, until it is saved", out, trained * itemsize, False))
        return _uses(*uses)

    def _spilled(self) -> int:
        """Weights that no file holds in this dtype, and copies that undo training."""
        found = self.found
        if not found.settings.low_memory or self.found.mapped:
            return 0
        copies = found.trained * self.trained_itemsize
        return sum(map(count, self.unused)) * found.itemsize + copies

    def _result(self) -> int:
        """Adapters, or the files that hold changed tensors; other files become links."""
        found = self.found
        if found.settings.lora is not None:
            return _FLOAT * found.trained
        tensors = found.checkpoint.tensors
        if not tensors or (found.meta is not None and found.meta.renamed):
            return self.structure.parameters * found.itemsize
        changed = {tensors[name].path.name for name in found.chosen if name in tensors}
        return sum(found.checkpoint.files[name] for name in changed)

    def costs(self, rates: Rates | None) -> tuple[CostEstimate, ...]:
        """Costs of caching, steps and validation, and their time."""
        found, config, held_out = self.found, self.config, self.found.held_out
        batch, lengths = self.batch, self.lengths
        cached = lengths.padded(CACHE_BATCH)
        cached += 0 if held_out is None else held_out.padded(CACHE_BATCH)
        if self.on_answers:
            cached += lengths.count * len(lengths.tokens) * batch.answer_tokens
        per_token = self.forward.flops / (self.cached_rows * batch.tokens)
        share = lengths.drawn(batch.prompts) / batch.tokens
        a_step = self.step.flops * share * config.batch_size / batch.prompts
        updates = config.steps * _BYTES_PER_UPDATE * found.trained
        forward, training = (None, None) if rates is None else (rates.forward, rates.training)
        each = [
            ("cache", cached * per_token, 0, forward),
            ("steps", config.steps * a_step, updates, training),
        ]
        if held_out is not None:
            times = ceil(config.steps / config.validate_every)
            once = a_step / 3 * held_out.count / config.batch_size
            each.append(("validation", times * once, 0, training))
        moved = None if rates is None else rates.bandwidth

        def seconds(flops: float, traffic: int, rate: float | None) -> float | None:
            if rate is None or (traffic and moved is None):
                return None
            return flops / rate + (traffic / moved if moved else 0.0)

        return tuple(
            CostEstimate(name, int(flops), traffic, seconds(flops, traffic, rate))
            for name, flops, traffic, rate in each
        )

    def rows(self) -> dict[str, Any]:
        """Return what was counted or assumed of the prompts."""
        return {
            "prompts": self.lengths.count,
            "languages": list(self.lengths.tokens),
            "tokens": self.lengths.total,
            "longest": self.lengths.longest,
            "tokens_from": self.lengths.source,
            "steps": self.config.steps,
            "batch_size": self.config.batch_size,
            "micro_batch_size": self.config.micro_batch_size,
        }

    advice = "train fewer blocks, use --lora, a smaller --micro-batch-size, or --dtype bfloat16"

    def problems(self) -> list[Problem]:
        """Whether weights and optimizer pass the limit that was asked for."""
        left = self.limit()
        if left is None or left >= 0:
            return []
        text = f"weights and optimizer pass --max-memory by {said(-left)}, so training would refuse"
        return [Problem("memory", f"{text}; {self.advice}")]


def _largest(parts: Sequence[dict[str, tuple[int, ...]]]) -> int:
    """Elements of the largest tensor."""
    return max((prod(shape) for part in parts for shape in part.values()), default=0)


# ---------------------------------------------------------------- probes


class ProbeSizing:
    """Memory, disk and time of a probe, from its checked facts."""

    def __init__(
        self,
        found: ProbeFindings,
        structure: Structure,
        lengths: RowLengths,
        limit: BatchLimit,
    ) -> None:
        from lens.models.batching import batches

        self.found, self.structure, self.lengths = found, structure, lengths
        self.batches = [size for each in lengths.tokens.values() for size in batches(each, limit)]
        self.largest = max(self.batches, key=lambda size: (size[0] * size[1], size[1]))
        rows, tokens = self.largest
        share = experts_used(found.checkpoint)
        forward = forward_cost(
            structure, rows=rows, tokens=tokens, itemsize=found.itemsize, share=share
        )
        padded = any(len(set(each)) > 1 for each in lengths.tokens.values())
        mask = rows * tokens**2 * found.itemsize if padded else 0
        self.forward = PassCost(forward.flops, forward.nbytes + mask)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each language."""
        return {lang: len(each) for lang, each in self.lengths.tokens.items()}

    @property
    def needed(self) -> int:
        """Blocks that are run: up to the last one that decides a state."""
        from lens.models.layers import FINAL, block_index

        sites = self.found.sites
        last = max((block_index(site) or 0 for site in sites if site != FINAL), default=0)
        return len(self.structure.blocks) if FINAL in sites else last + 1

    def phases(self) -> tuple[Phase, ...]:
        """Memory of every phase."""
        from lens.models.batching import WINDOW

        structure = self.structure
        itemsize, by_layer = self.found.itemsize, self.found.settings.layer_by_layer
        rows, tokens = self.largest
        block = max(structure.of_block) * itemsize
        around = (count(structure.embedding) + count(structure.rest)) * itemsize
        run = block if by_layer else sum(structure.of_block[: self.needed]) * itemsize
        whole = structure.parameters * itemsize
        pooled = (1 if by_layer else len(self.found.sites)) * structure.width * _STATE
        batch = pooled * max(rows for rows, _ in self.batches)
        running = self.forward.nbytes
        if by_layer:  # states enter a block; a conversion holds its pages first
            running += rows * tokens * structure.width * itemsize
            running = max(running, 0 if self.found.mapped else self._pages(block))
        probing = {
            "weights": run + around if self.found.mapped or by_layer else whole,
            "activations": max(running, _LOGGED_COPIES * batch),
            "pooled states": pooled * min(WINDOW, self.lengths.count) + batch,
            "moments": self.moments(),
            # pooled states stay in the heap between blocks that batches free
            "freed, not returned": self.forward.heap,
        }
        results = len(self.found.sites) * len(self.counts) * 2 * structure.width * _STATE
        saving = {
            "weights": 0 if self.found.mapped else around if by_layer else whole,
            "moments": self.moments() + results,
            "space, being written": _FILE_COPIES * self.space(),
        }
        tokenizer = {"tokenizer": _TOKENIZER * self.found.checkpoint.tokenizer_bytes}
        each = {"load": self._loading(block, around), "probe": probing, "save": saving}
        return _phases({name: tokenizer | parts for name, parts in each.items()})

    def _loading(self, block: int, around: int) -> dict[str, int]:
        """Weights as they are loaded, and a run of four tokens; layer by layer that of one block.

        A conversion holds the files' pages beside its result; of a mapped embedding four rows are
        read, unless it is the output head too. Layer by layer the head is loaded once, to hash the
        model.
        """
        structure, itemsize = self.structure, self.found.itemsize
        embedding, head = (count(part) * itemsize for part in (structure.embedding, structure.head))
        whole = structure.parameters * itemsize
        if self.found.settings.layer_by_layer:
            if self.found.mapped:
                return {"weights": block}
            pages = self._pages(max(block, head, embedding))
            return {"weights": around + max(block, head), "pages of the files": pages}
        if self.found.mapped:
            return {"weights": whole - (embedding if head else 0)}
        return {"weights": whole, "pages of the files": self.found.checkpoint.nbytes}

    def _pages(self, part: int) -> int:
        """Bytes that a part of the weights takes in the files."""
        whole = self.structure.parameters * self.found.itemsize
        return self.found.checkpoint.nbytes * part // max(whole, 1)

    def moments(self) -> int:
        """Bytes of the statistics of all sites and languages."""
        each = sum(moments_bytes(n, self.structure.width) for n in self.counts.values())
        return len(self.found.sites) * each

    def space(self) -> int:
        """Bytes of the space and its record, if every site has the highest rank it can have."""
        sites, languages = len(self.found.sites), len(self.counts)
        fit = (self.structure.width + 1) * (languages - 1) + self.structure.width
        text = _RECORD * (sites + languages) + _ENTRY * sites * (3 + 4 * languages)
        return self.moments() + sites * fit * _STATE + text

    def kept_states(self) -> int:
        """Bytes of the pooled states of every row, without their record."""
        from lens.space.state_store import STORAGE, layout

        settings, width = self.found.settings, self.structure.width
        if settings.keep_states is None:
            return 0
        row = width * STORAGE[settings.states_dtype].dtype.itemsize
        sites = self.found.sites
        heads = (layout(site, self.counts, width, settings.states_dtype)[0] for site in sites)
        return sum(heads) + len(sites) * sum(self.counts.values()) * row

    def spilled(self) -> int:
        """Bytes of the two files of hidden states between blocks."""
        if not self.found.settings.layer_by_layer:
            return 0
        return 2 * self.lengths.total * self.structure.width * self.found.itemsize

    def unfinished(self) -> int:
        """Bytes recorded to resume, at the end of a probe: its last unit, and statistics."""
        from lens.models.batching import WINDOW

        sites, counts = len(self.found.sites), self.counts
        by_layer = self.found.settings.layer_by_layer
        rows = sum(counts.values()) if by_layer else min(WINDOW, self.lengths.count)
        states = rows * (1 if by_layer else sites) * self.structure.width * _STATE
        return states + self.moments() + _ENTRY * 4 * sites * len(counts)

    def disk(self) -> tuple[DiskUse, ...]:
        """Everything that is written, and where."""
        settings = self.found.settings
        return _uses(
            ("hidden states", self.found.work, self.spilled(), False),
            ("unfinished probe", self.found.work, self.unfinished(), False),
            ("kept states", settings.keep_states or Path(), self.kept_states(), True),
            ("space", self.found.file.parent, self.space(), True),
        )

    def costs(self, rates: Rates | None) -> tuple[CostEstimate, ...]:
        """Costs of running the rows, reading the weights once, and opening them per block."""
        found, structure = self.found, self.structure
        rows, tokens = self.largest
        share = sum(structure.of_block[: self.needed]) / sum(structure.of_block)
        per_token = share * self.forward.flops / (rows * tokens)
        flops = int(per_token * sum(rows * tokens for rows, tokens in self.batches))
        read, opened = found.checkpoint.nbytes, self.opened
        each = []
        if read and rates is not None and rates.reading is None:
            found.notes.append("reading the weights is not timed (--reading)")
        elif read:
            reading = None if rates is None or rates.reading is None else read / rates.reading
            each.append(CostEstimate("read", 0, read, reading))
        if opened:
            opening = None if rates is None else opened * _OPENING
            each.append(CostEstimate("open", 0, 0, opening))
        running = None if rates is None else flops / rates.forward
        return (*each, CostEstimate("probe", flops, 0, running))

    @property
    def opened(self) -> int:
        """Tensors listed each time a block, or the head, is loaded: to run, to try, to hash."""
        if not self.found.settings.layer_by_layer:
            return 0
        blocks = len(self.structure.blocks)
        times = self.needed + 1 + blocks + bool(self.structure.head)
        return times * len(self.found.checkpoint.tensors)

    def rows(self) -> dict[str, Any]:
        """Return what was counted or assumed of the rows."""
        return {
            "rows": self.lengths.count,
            "languages": list(self.lengths.tokens),
            "tokens": self.lengths.total,
            "longest": self.lengths.longest,
            "tokens_from": self.lengths.source,
            "sites": list(self.found.sites),
            "batches": len(self.batches),
            "largest_batch": list(self.largest),
            "layer_by_layer": bool(self.found.settings.layer_by_layer),
        }

    @property
    def advice(self) -> str:
        """What to do where memory is too small."""
        smaller = "a smaller --batch-size, --max-tokens or --dtype bfloat16"
        if self.found.settings.layer_by_layer:
            return smaller
        return f"--layer-by-layer holds one block at a time; or {smaller}"

    def problems(self) -> list[Problem]:
        """Nothing beyond the checks: a limit shrinks batches."""
        return []


def moments_bytes(rows: int, width: int) -> int:
    """Bytes of the statistics of ``rows`` rows: mean and spread of every whole subtree of them."""
    from lens.pooling import BLOCK_ROWS

    whole, rest = divmod(rows, BLOCK_ROWS)
    return (whole.bit_count() + bool(rest)) * (2 * width + 2) * _STATE
