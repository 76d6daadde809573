"""Count what a run of training takes: work, memory, disk, time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Self

from lens.errors import InputError
from lens.planning import checks
from lens.planning.looking import Findings
from lens.planning.memory import Phase, Sizes
from lens.planning.models import LARGE_BLOCK, Ghost, Work, parts_of
from lens.planning.plans import DiskUse, Effort, Problem
from lens.planning.rates import BYTES_PER_UPDATE, Rates, calibrate, seconds
from lens.planning.rows import Lengths
from lens.planning.structures import Structure, count, elements
from lens.planning.work import (
    Load,
    Step,
    Trained,
    forward_formula,
    forward_work,
    step_formula,
    step_work,
)

CACHE_BATCH = 32  # rows of a batch that `lens.lsm.LensTrainer` caches
_FLOAT = 4
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

    found: Findings
    structure: Structure
    lengths: Lengths
    load: Load
    forward: Work
    step: Step

    @classmethod
    def of(cls, found: Findings) -> Self:
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
            itemsize=_FLOAT if adapters else itemsize,
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
        from lens.sizes import size_in_bytes

        request, structure = self.found.request, self.structure
        if request.max_memory is None:
            return None
        itemsize = self.found.itemsize
        weights = structure.parameters * itemsize
        first = min(self.found.layers)
        unused = (*structure.blocks[:first], structure.head, structure.embedding)
        idle = [count(part) * itemsize for part in unused if request.low_memory]
        training = 4 * _FLOAT * self.found.trained
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
        band = self.found.trained * (_FLOAT if request.lora is not None else self.found.itemsize)
        if request.checkpoint_every is not None:
            moments = (2 if band == _FLOAT * self.found.trained else 3) * _FLOAT
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
            return _FLOAT * found.trained
        tensors = found.checkpoint.tensors
        if not tensors or (found.ghost is not None and found.ghost.renamed):
            return self.structure.parameters * found.itemsize
        changed = {tensors[name].path.name for name in found.chosen if name in tensors}
        return sum(found.checkpoint.files[name] for name in changed)

    def efforts(self, rates: Rates | None) -> tuple[Effort, ...]:
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
            Effort(
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


def _run(found: Findings, load: Load) -> tuple[Work, Step] | None:
    """Work by the model's own code on fake tensors; None where that cannot be."""
    done = found.worked(lambda ghost: _worked(found, ghost, load))
    if done is None:
        return None
    forward, first, again = done
    return forward, Step(first, again)


def _worked(found: Findings, ghost: Ghost, load: Load) -> tuple[Work, ...] | None:
    rows = min(CACHE_BATCH, found.lengths.count if found.lengths else 1)
    try:
        parts = parts_of(ghost)
    except (InputError, RuntimeError):
        return None
    names = ghost.structure(found.checkpoint).chosen(found.layers, found.request.train)
    lora = found.request.lora
    if lora is not None:
        from lens.lsm.adapters import Lora, takes_adapter

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


def _by_formula(found: Findings, structure: Structure, load: Load) -> tuple[Work, Step]:
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
    return sum(n for n in elements(chosen) if n * _FLOAT < LARGE_BLOCK)
