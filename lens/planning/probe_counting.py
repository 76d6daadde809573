"""Count what a probe takes: work, memory, disk, time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lens.errors import InputError
from lens.planning import checks
from lens.planning.memory import Phase
from lens.planning.models import Ghost, Work
from lens.planning.plans import DiskUse, Effort, Problem
from lens.planning.probe_memory import ProbeSizes
from lens.planning.probes import ProbeFindings
from lens.planning.rates import Rates, calibrate, seconds
from lens.planning.rows import Lengths
from lens.planning.structures import Structure, count
from lens.planning.work import forward_formula, forward_work

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
    forward: Work

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

        def run(ghost: Ghost) -> tuple[Work] | None:
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
        from lens.models.sites import FINAL, block_index

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
        from lens.space.states import STORAGE, layout

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

    def efforts(self, rates: Rates | None) -> tuple[Effort, ...]:
        """Work of running the rows; weights that a disk must give once, and blocks to open."""
        rows, tokens = _largest(self.batches)
        share = sum(self.structure.of_block[: self.needed]) / sum(self.structure.of_block)
        per_token = share * self.forward.flops / (rows * tokens)
        flops = int(per_token * sum(rows * tokens for rows, tokens in self.batches))
        forward = None if rates is None else seconds(flops, rates.forward, 0, None)
        probe = Effort("probe", flops, 0, forward)
        read, opened = self.found.checkpoint.nbytes, self.opened
        if rates is None:
            others = [Effort("read", 0, read, None), Effort("open", 0, 0, None)]
        else:
            reading = seconds(0, None, read, rates.reading)
            opening = None if rates.opening is None else opened * rates.opening
            others = [Effort("read", 0, read, reading), Effort("open", 0, 0, opening)]
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
    from lens.stats import BLOCK_ROWS

    whole, rest = divmod(rows, BLOCK_ROWS)
    return (whole.bit_count() + bool(rest)) * (2 * width + 2) * _FLOAT


def _entries(prefix: str, names: int) -> int:
    """Bytes of entries of a safetensors header."""
    return names * (len(prefix) + _ENTRY)
