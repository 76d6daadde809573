"""Count what a probe takes: work, memory, disk, time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Self

from lens.errors import InputError
from lens.planning import checks
from lens.planning.cost import (
    BYTES_PER_UPDATE,
    Load,
    Rates,
    StepCost,
    Trained,
    calibrate,
    forward_formula,
    forward_work,
    seconds,
    step_formula,
    step_work,
)
from lens.planning.findings import Lengths, ProbeFindings, TrainFindings
from lens.planning.memory import Phase, ProbeSizes, Sizes
from lens.planning.model import (
    LARGE_BLOCK,
    BlockWork,
    MetaModel,
    Structure,
    count,
    elements,
    parts_of,
)
from lens.planning.results import CostEstimate, DiskUse, Problem

CACHE_BATCH = 32  # rows of a batch that `lens.lsm.LensTrainer` caches
_FLOAT_BYTES = 4
_TOKEN_ID = 8
_KEPT_CHECKPOINTS = 2


@dataclass(slots=True)
class Count:
    """Everything that is counted of a run.

    Attributes
    ----------
    found : Findings
        What is known.
    structure, lengths
        Of it, what must be there to count.
    load : Load
        The largest pass of a step.
    forward : Work
        A batch that is cached.
    step : Step
        A pass of a step.
    """

    found: TrainFindings
    structure: Structure
    lengths: Lengths
    load: Load
    forward: BlockWork
    step: StepCost

    @classmethod
    def of(cls, found: TrainFindings) -> Self:
        """Run the model without values, or use formulas where it cannot be run."""
        structure, lengths = found.structure, found.lengths
        if structure is None or lengths is None:
            raise InputError("a plan needs a model whose blocks are known, and prompts")
        prompts = found.config.micro_batch or found.config.batch_size
        answers = found.request.answer_tokens or lengths.longest
        load = Load(prompts, len(lengths.tokens), lengths.longest, lengths.longest + answers)
        worked = _run(found, load) or _by_formula(found, structure, load)
        return cls(found, structure, lengths, load, *worked)

    def measured(self) -> Rates | None:
        """Run one block of the model here, with values."""
        found = self.found
        batch = (min(CACHE_BATCH, self.lengths.count), self.lengths.longest)
        try:
            return calibrate(
                found.checkpoint, self.structure, blocks_name=found.parts()[1], dtype=found.dtype,
                forward=batch, load=self.load, trust_remote_code=found.request.trust_remote_code,
            )  # fmt: skip
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            found.notes.append(f"no times: a block could not be run by itself ({error})")
            return None

    @property
    def passes(self) -> int:
        """Passes of a step."""
        return ceil(self.found.config.batch_size / self.load.prompts)

    def sizes(self) -> Sizes:
        """Everything that decides memory."""
        found, structure, request = self.found, self.structure, self.found.request
        itemsize, stored = found.itemsize, found.checkpoint
        first = min(found.layers)
        below = [count(block) for block in structure.blocks[:first]]
        idle = sum(below) + count(structure.embedding) + count(structure.head)
        every = [n for part in structure.parts for n in elements(part)]
        unused = (*structure.blocks[:first], structure.embedding, structure.head)
        adapters = request.lora is not None
        used = any(term.kind in ("kl", "lm") for term in found.config.active)
        return Sizes(
            weights=structure.parameters * itemsize,
            stored=stored.nbytes,
            mapped=not stored.tensors or stored.dtype == found.dtype,
            kept=(structure.parameters - idle) * itemsize,
            largest=max(every) * itemsize,
            largest_idle=max((n for part in unused for n in elements(part)), default=0) * itemsize,
            low_memory=request.low_memory,
            trained=found.trained,
            largest_trained=max(map(prod, found.chosen.values())) if not adapters else 0,
            scattered=found.trained if adapters else _scattered(found.chosen),
            itemsize=_FLOAT_BYTES if adapters else itemsize,
            adapters=adapters,
            states=self._states_in_memory(),
            forward=self.forward,
            step=self.step,
            passes=self.passes,
            vocabulary_used=used,
            validation=found.held_out is not None,
        )

    def states(self) -> int:
        """Bytes of cached states: what enters the band, and references at the sites read."""
        config, width = self.found.config, self.structure.width * self.found.itemsize
        sites = len(config.placed(len(self.structure.blocks)).sites)
        total = 0
        for lengths in filter(None, (self.lengths, self.found.held_out)):
            for i, tokens in enumerate(lengths.tokens.values()):
                whole = i == 0 or config.references == "all"
                kept = sum(tokens) if whole else len(tokens)
                total += (sum(tokens) + sites * kept) * width + sum(tokens) * _TOKEN_ID
        if any(getattr(term, "rows", None) == "answers" for term in config.active):
            rows = self.lengths.count * len(self.lengths.tokens)
            pivot = self.lengths.count * self.load.answer_tokens
            total += rows * self.load.answer_tokens * (width + _TOKEN_ID)
            total += (pivot + rows) * sites * width
        return total

    def _states_in_memory(self) -> int:
        """Bytes of cached states that stay in memory: none with a folder or above a limit."""
        states, left = self.states(), self.limit()
        if self.found.request.cache is not None:
            return 0
        return states if left is None or states <= left else 0

    def limit(self) -> int | None:
        """Bytes that --max-memory leaves for states, as training reckons; None without one."""
        from lens.utils.files import size_in_bytes

        request, structure = self.found.request, self.structure
        if request.max_memory is None:
            return None
        itemsize = self.found.itemsize
        weights = structure.parameters * itemsize
        first = min(self.found.layers)
        unused = (*structure.blocks[:first], structure.head, structure.embedding)
        idle = [count(part) * itemsize for part in unused if request.low_memory]
        training = 4 * _FLOAT_BYTES * self.found.trained
        needed = weights - sum(idle) + max([training, *idle])
        return size_in_bytes(request.max_memory) - needed

    def disk(self) -> tuple[DiskUse, ...]:
        """Everything that is written, and where."""
        request = self.found.request
        temporary = Path(tempfile.gettempdir())
        out = Path(request.out) if request.out is not None else Path("lens-out")
        uses = [("spilled weights", temporary, self._spilled(), False)]
        if request.cache is not None:
            uses.append(("cached states", Path(request.cache), self.states(), True))
        elif not self._states_in_memory():
            uses.append(("cached states", temporary, self.states(), False))
        uses.append(("result", out.parent, self._result(), True))
        band = self.found.trained * (
            _FLOAT_BYTES if request.lora is not None else self.found.itemsize
        )
        if request.checkpoint_every is not None:
            moments = (2 if band == _FLOAT_BYTES * self.found.trained else 3) * _FLOAT_BYTES
            each = band + moments * self.found.trained
            uses.append(
                ("checkpoints", out.parent, (_KEPT_CHECKPOINTS + 1) * each, False)
            )  # the last two, and one that is being written
        elif request.out is not None:
            uses.append(("finished training, until it is saved", out.parent, band, False))
        return tuple(
            DiskUse(what, str(where), size, checks.free_disk(where), stays)
            for what, where, size, stays in uses
            if size
        )

    def _spilled(self) -> int:
        """Weights that a file does not hold already, and copies that undo training."""
        found, sizes = self.found, self.sizes()
        if not sizes.low_memory or sizes.mapped:
            return 0
        return sizes.weights - sizes.kept + found.trained * sizes.itemsize

    def _result(self) -> int:
        """Adapters, or the files that hold changed tensors; other files become links."""
        found = self.found
        if found.request.lora is not None:
            return _FLOAT_BYTES * found.trained
        tensors = found.checkpoint.tensors
        if not tensors or (found.ghost is not None and found.ghost.renamed):
            return self.structure.parameters * found.itemsize
        changed = {tensors[name].path.name for name in found.chosen if name in tensors}
        return sum(found.checkpoint.files[name] for name in changed)

    def efforts(self, rates: Rates | None) -> tuple[CostEstimate, ...]:
        """Work of caching, steps and validation, and its time."""
        found, config = self.found, self.found.config
        per_token = self.forward.flops / (self._cached_rows() * self.load.tokens)
        cached = self.lengths.padded(CACHE_BATCH)
        cached += 0 if found.held_out is None else found.held_out.padded(CACHE_BATCH)
        if any(getattr(term, "rows", None) == "answers" for term in config.active):
            rows = self.lengths.count * len(self.lengths.tokens)
            cached += rows * self.load.answer_tokens
        share = self.lengths.drawn(self.load.prompts) / self.load.tokens
        a_step = self.step.first.flops * share * config.batch_size / self.load.prompts
        updates = BYTES_PER_UPDATE * found.trained
        each = [
            ("cache", cached * per_token, 0, None if rates is None else rates.forward),
            ("steps", config.steps * a_step, config.steps * updates,
             None if rates is None else rates.training),
        ]  # fmt: skip
        if found.held_out is not None:
            times = ceil(config.steps / config.validate_every)
            once = a_step / 3 * found.held_out.count / config.batch_size
            each.append(("validation", times * once, 0, None if rates is None else rates.training))
        return tuple(
            CostEstimate(
                name, int(flops), traffic,
                None if rates is None else seconds(flops, rate, traffic, rates.bandwidth),
            )
            for name, flops, traffic, rate in each
        )  # fmt: skip

    def _cached_rows(self) -> int:
        return min(CACHE_BATCH, self.lengths.count)

    def rows(self) -> dict[str, Any]:
        """Return what was counted or assumed of the prompts."""
        config = self.found.config
        return {
            "prompts": self.lengths.count,
            "languages": list(self.lengths.tokens),
            "tokens": sum(map(sum, self.lengths.tokens.values())),
            "longest": self.lengths.longest,
            "tokens_from": self.lengths.source,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "micro_batch": config.micro_batch,
        }

    def problems(self, memory: tuple[Phase, ...], free: int | None) -> list[Problem]:
        """Too little memory, by this machine or by the limit asked for."""
        found = checks.of_memory(memory, free, _ADVICE)
        left = self.limit()
        if left is not None and left < 0:
            found.append(
                Problem("memory", f"weights and optimizer pass --max-memory by "
                        f"{checks.said(-left)}, so training would refuse; {_ADVICE}")
            )  # fmt: skip
        return found


_ADVICE = "train fewer blocks, use --lora, a smaller --micro-batch, or --dtype bfloat16"


def _run(found: TrainFindings, load: Load) -> tuple[BlockWork, StepCost] | None:
    """Work by the model's own code on fake tensors; None where that cannot be."""
    done = found.worked(lambda ghost: _worked(found, ghost, load))
    if done is None:
        return None
    forward, first, again = done
    return forward, StepCost(first, again)


def _worked(found: TrainFindings, ghost: MetaModel, load: Load) -> tuple[BlockWork, ...] | None:
    rows = min(CACHE_BATCH, found.lengths.count if found.lengths else 1)
    try:
        parts = parts_of(ghost)
    except (InputError, RuntimeError):
        return None
    names = ghost.structure(found.checkpoint).chosen(found.layers, found.request.train)
    lora = found.request.lora
    if lora is not None:
        from lens.training.parameters import Lora, takes_adapter

        lora = Lora(lora) if isinstance(lora, int) else lora
        modules = dict(ghost.model.named_modules())
        names = {
            name: shape
            for name, shape in names.items()
            if len(shape) == 2 and takes_adapter(modules[name.rpartition(".")[0]])
        }
    trained = Trained(found.layers, tuple(names), lora, found.request.gradient_checkpointing)
    forward = forward_work(ghost, rows=rows, tokens=load.tokens)
    step = step_work(ghost, parts, trained, found.config, load)
    return None if forward is None or step is None else (forward, step.first, step.again)


def _by_formula(
    found: TrainFindings, structure: Structure, load: Load
) -> tuple[BlockWork, StepCost]:
    found.notes.append("operations and activations by formula: within about 30 %")
    share = found.experts_used
    rows = min(CACHE_BATCH, found.lengths.count if found.lengths else 1)
    trained = Trained(
        found.layers, tuple(found.chosen), found.request.lora, found.request.gradient_checkpointing
    )
    forward = forward_formula(
        structure, rows=rows, tokens=load.tokens, itemsize=found.itemsize, share=share
    )
    step = step_formula(
        structure, trained, found.config, load, itemsize=found.itemsize, share=share
    )
    return forward, step


def _scattered(chosen: dict[str, tuple[int, ...]]) -> int:
    """Elements of tensors that are small enough, in float32, to lie in the heap."""
    return sum(n for n in elements(chosen) if n * _FLOAT_BYTES < LARGE_BLOCK)


_FLOAT = 8  # statistics and pooled states are in float64
_TOKENIZER = 18  # times the bytes of its file, in memory: as measured
# Text around the numbers, in bytes, as measured (docs/planning.md): an entry of a safetensors
# header beside its name; of the records in header and twin, what there is once, for a language,
# for a site, and for a singular value; a record of the journal, and in it a row and a site.
_ENTRY, _RECORD, _LANGUAGE, _SITE, _VALUE = 64, 1900, 450, 450, 50
_NOTE, _NOTED_ROW, _NOTED_SITE = 110, 5, 16


@dataclass(slots=True)
class ProbeCount:
    """Everything that is counted of a probe.

    Attributes
    ----------
    found : ProbeFindings
        What is known.
    structure, lengths
        Of it, what must be there to count.
    batches : list of (int, int)
        Rows and tokens of every batch, padding included.
    forward : Work
        The largest of them, through all blocks.
    """

    found: ProbeFindings
    structure: Structure
    lengths: Lengths
    batches: list[tuple[int, int]]
    forward: BlockWork

    @classmethod
    def of(cls, found: ProbeFindings) -> Self:
        """Run the model without values, or use formulas where it cannot be run."""
        from lens.models.batching import batches

        structure, lengths, limit = found.structure, found.lengths, found.limit
        if structure is None or lengths is None or limit is None:
            raise InputError("a plan needs a model whose blocks are known, and rows")
        every = [size for each in lengths.tokens.values() for size in batches(each, limit)]
        rows, tokens = _largest(every)
        padded = any(len(set(each)) > 1 for each in lengths.tokens.values())

        def run(ghost: MetaModel) -> tuple[BlockWork] | None:
            done = forward_work(ghost, rows=rows, tokens=tokens, padded=padded)
            return None if done is None else (done,)

        worked = found.worked(run)
        if worked is None:
            found.notes.append("operations and activations by formula: within about 30 %")
        forward = worked[0] if worked else forward_formula(
            structure, rows=rows, tokens=tokens, itemsize=found.itemsize, share=found.experts_used
        )  # fmt: skip
        return cls(found, structure, lengths, every, forward)

    def measured(self) -> Rates | None:
        """Run one block of the model here, with values."""
        found, request = self.found, self.found.request
        try:
            return calibrate(
                found.checkpoint, self.structure, blocks_name=found.parts()[1], dtype=found.dtype,
                forward=_largest(self.batches), by_layer=request.layer_by_layer, any_kind=True,
                trust_remote_code=request.trust_remote_code,
            )  # fmt: skip
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            found.notes.append(f"no times: a block could not be run by itself ({error})")
            return None

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

    def sizes(self) -> ProbeSizes:
        """Everything that decides memory."""
        from lens.models.batching import WINDOW

        found, structure = self.found, self.structure
        itemsize, by_layer = found.itemsize, found.request.layer_by_layer
        rows, tokens = _largest(self.batches)
        block = max(structure.of_block) * itemsize
        around = (count(structure.embedding) + count(structure.rest)) * itemsize
        run = block if by_layer else sum(structure.of_block[: self.needed]) * itemsize
        together = 1 if by_layer else len(found.sites)  # sites whose states are pooled in one run
        pooled = together * structure.width * _FLOAT
        return ProbeSizes(
            weights=structure.parameters * itemsize,
            stored=found.checkpoint.nbytes,
            mapped=not found.checkpoint.tensors or found.checkpoint.dtype == found.dtype,
            by_layer=by_layer,
            embedding=count(structure.embedding) * itemsize,
            head=count(structure.head) * itemsize,
            used=run + around,
            block=block,
            activations=self.forward.peak,
            scattered=self.forward.scattered,
            states=rows * tokens * structure.width * itemsize,
            pooled_batch=pooled * max(rows for rows, _ in self.batches),
            pooled_window=pooled * min(WINDOW, self.lengths.count),
            moments=self._moments(),
            results=len(found.sites) * len(self.counts) * 2 * structure.width * _FLOAT,
            file=self.space(),
            tokenizer=_TOKENIZER * found.checkpoint.tokenizer_bytes,
        )

    def _moments(self) -> int:
        """Statistics of all sites and languages."""
        each = sum(_moments_of(n, self.structure.width) for n in self.counts.values())
        return len(self.found.sites) * each

    def space(self) -> int:
        """Bytes of the space and its twin, if every site has as many directions as it can."""
        sites, languages = self.found.sites, list(self.counts)
        directions = len(languages) - 1
        fit = (self.structure.width * (directions + 1) + directions) * _FLOAT
        text = _RECORD + _LANGUAGE * len(languages) + len(sites) * (_SITE + _VALUE * directions)
        for site in sites:
            text += _entries(f"fit/{site}/", 3)
            text += sum(_entries(f"moments/{site}/{lang}/", 4) for lang in languages)
        return self._moments() + len(sites) * fit + text

    def kept_states(self) -> int:
        """Bytes of the pooled states of every row, without their record."""
        from lens.space.state_store import STORAGE, layout

        if self.found.request.keep_states is None or self.found.request.states_dtype not in STORAGE:
            return 0
        width, dtype = self.structure.width, self.found.request.states_dtype
        row = width * STORAGE[dtype].dtype.itemsize
        heads = (layout(site, self.counts, width, dtype)[0] for site in self.found.sites)
        return sum(heads) + len(self.found.sites) * sum(self.counts.values()) * row

    def spilled(self) -> int:
        """Bytes of the two files of hidden states between blocks."""
        if not self.found.request.layer_by_layer:
            return 0
        tokens = sum(map(sum, self.lengths.tokens.values()))
        return 2 * tokens * self.structure.width * self.found.itemsize

    def journal(self) -> int:
        """Bytes at the end of a probe of what it keeps to go on: its last unit, and statistics."""
        from lens.models.batching import WINDOW

        sites, counts, width = self.found.sites, self.counts, self.structure.width
        by_layer = self.found.request.layer_by_layer
        together = 1 if by_layer else len(sites)
        rows = sum(counts.values()) if by_layer else min(WINDOW, self.lengths.count)
        batches = len(self.batches) if by_layer else -(-rows // min(r for r, _ in self.batches))
        noted = rows * (together * width * _FLOAT + _NOTED_ROW)
        noted += batches * (_NOTE + _NOTED_SITE * together)
        heads = sum(_entries(f"{lang}/{site}/", 4) for lang in counts for site in sites)
        return noted + self._moments() + heads

    def disk(self) -> tuple[DiskUse, ...]:
        """Everything that is written, and where."""
        request = self.found.request
        uses = [
            ("hidden states", request.work, self.spilled(), False),
            ("unfinished probe", request.work, self.journal(), False),
            ("kept states", Path(request.keep_states or "."), self.kept_states(), True),
            ("space", request.file.parent, self.space(), True),
        ]
        return tuple(
            DiskUse(what, str(where), size, checks.free_disk(where), stays)
            for what, where, size, stays in uses
            if size
        )

    def efforts(self, rates: Rates | None) -> tuple[CostEstimate, ...]:
        """Work of running the rows; weights that a disk must give once, and blocks to open."""
        rows, tokens = _largest(self.batches)
        share = sum(self.structure.of_block[: self.needed]) / sum(self.structure.of_block)
        per_token = share * self.forward.flops / (rows * tokens)
        flops = int(per_token * sum(rows * tokens for rows, tokens in self.batches))
        forward = None if rates is None else seconds(flops, rates.forward, 0, None)
        probe = CostEstimate("probe", flops, 0, forward)
        read, opened = self.found.checkpoint.nbytes, self.opened
        if rates is None:
            others = [CostEstimate("read", 0, read, None), CostEstimate("open", 0, 0, None)]
        else:
            reading = seconds(0, None, read, rates.reading)
            opening = None if rates.opening is None else opened * rates.opening
            others = [CostEstimate("read", 0, read, reading), CostEstimate("open", 0, 0, opening)]
            if read and reading is None:
                self.found.notes.append("reading the weights is not timed (--reading)")
            others = [effort for effort in others if effort.seconds is not None]
        there = {"read": read, "open": opened}
        return (*(effort for effort in others if there[effort.name]), probe)

    @property
    def opened(self) -> int:
        """How often a block, or the head, is loaded: to be run, tried, and to tell the model."""
        if not self.found.request.layer_by_layer:
            return 0
        return self.needed + 1 + len(self.structure.blocks) + bool(self.structure.head)

    def rows(self) -> dict[str, Any]:
        """Return what was counted or assumed of the rows."""
        rows, tokens = _largest(self.batches)
        return {
            "rows": self.lengths.count,
            "languages": list(self.lengths.tokens),
            "tokens": sum(map(sum, self.lengths.tokens.values())),
            "longest": self.lengths.longest,
            "tokens_from": self.lengths.source,
            "sites": list(self.found.sites),
            "batches": len(self.batches),
            "largest_batch": [rows, tokens],
            "layer_by_layer": self.found.request.layer_by_layer,
        }

    def problems(self, memory: tuple[Phase, ...], free: int | None) -> list[Problem]:
        """Too little memory on this machine."""
        advice = "a smaller --batch-size, --max-tokens or --dtype bfloat16"
        if not self.found.request.layer_by_layer:
            advice = f"--layer-by-layer holds one block at a time; or {advice}"
        return checks.of_memory(memory, free, advice)


def _largest(batches: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the batch with most tokens."""
    return max(batches, key=lambda size: (size[0] * size[1], size[1]))


def _moments_of(rows: int, width: int) -> int:
    """Bytes of the statistics of so many rows: mean and spread of every whole subtree of them."""
    from lens.pooling import BLOCK_ROWS

    whole, rest = divmod(rows, BLOCK_ROWS)
    return (whole.bit_count() + bool(rest)) * (2 * width + 2) * _FLOAT


def _entries(prefix: str, names: int) -> int:
    """Bytes of entries of a safetensors header."""
    return names * (len(prefix) + _ENTRY)
