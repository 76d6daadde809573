"""Run sets of rows through a model window by window, and gather what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lens.errors import InputError
from lens.models.batching import BatchLimit
from lens.models.blocks import device_of
from lens.models.capturing.journal import Arrays, Finished, Journal
from lens.models.capturing.rows import RowSet, is_out_of_memory
from lens.models.chat import Batch, pad
from lens.models.pooling import NonFiniteStateError, Pooled, SiteReader
from lens.stats import StreamingMoments

Step = Callable[[Batch, RowSet, list[int]], Pooled]


class Keeper(Protocol):
    """Where pooled states are kept, such as `lens.space.keeping.StatesWriter`."""

    def write(self, language: str, site: str, start: int, values: NDArray[np.float64]) -> None:
        """Keep consecutive rows of a language."""

    def flush(self) -> None:
        """Wait until they are on the disk."""


@dataclass(slots=True)
class Gathered:
    """Statistics per label and site, and pooled states where they are wanted."""

    moments: dict[str, dict[str, StreamingMoments]]
    keeper: Keeper | None = None
    states: dict[str, dict[str, NDArray[np.float64]]] | None = None

    def take(self, group: RowSet, start: int, pooled: Mapping[str, NDArray[np.float64]]) -> None:
        """Add the states of consecutive rows."""
        for site, values in pooled.items():
            self.moments[group.label][site].update(values, group.offset + start)
            if self.keeper is not None:
                self.keeper.write(group.label, site, start, values)
            if self.states is not None:
                self.states[group.label][site][start : start + len(values)] = values

    def arrays(self, labels: Sequence[str], sites: Sequence[str]) -> Arrays:
        """Statistics as arrays, for the journal."""
        return {
            f"{label}/{site}/{name}": array
            for label in labels
            for site in sites
            for name, array in self.moments[label][site].to_arrays().items()
        }

    def restore(self, arrays: Arrays) -> None:
        """Take back what `arrays` gave."""
        grouped: dict[tuple[str, str], Arrays] = {}
        for key, array in arrays.items():
            label, site, name = key.split("/")
            grouped.setdefault((label, site), {})[name] = array
        for (label, site), parts in grouped.items():
            self.moments[label][site] = StreamingMoments.from_arrays(parts)


@dataclass(slots=True)
class Job:
    """What stays the same over a capture, and the batch size, which may shrink."""

    model: Any
    limit: BatchLimit
    pad_id: int
    side: Literal["left", "right"]
    gathered: Gathered
    bar: Any
    journal: Journal | None = None
    _pending: Iterator[Finished] = field(default_factory=lambda: iter(()))
    _next: Finished | None = None

    def begin(self, unit: str) -> None:
        """Start a unit of the journal; what it finished before is used by `window`."""
        if self.journal is not None:
            self._pending = self.journal.open_unit(unit)
            self._next = next(self._pending, None)

    def end(self, name: str, labels: Sequence[str], sites: Sequence[str]) -> None:
        """Write the statistics of a unit that is done."""
        if self.journal is None:
            return
        if self.gathered.keeper is not None:
            self.gathered.keeper.flush()
        arrays = self.gathered.arrays(labels, sites)
        self.journal.finish(name, arrays, {"size": self.limit.rows})

    def window(self, group: RowSet, window: range, step: Step) -> Pooled:
        """Pooled states of the rows of a window, in their order."""
        order = group.by_length(window)
        lengths = [len(group.rows[i].ids) for i in order]
        pooled: Pooled = {}
        done = 0
        while done < len(order):
            states: Pooled | None
            found = self._found(group, order, done)
            if found is not None:
                chosen, states, self.limit.rows = found.rows, found.pooled, found.size
            else:
                chosen = order[done : done + self.limit.count(lengths, done)]
                states = self._attempt(group, chosen, step)
                if states is None:
                    continue
                if self.journal is not None:
                    self.journal.note(group.label, chosen, states, self.limit.rows)
            places = np.asarray(chosen) - window.start
            for site, values in states.items():
                if site not in pooled:
                    pooled[site] = np.empty((len(window), values.shape[1]))
                pooled[site][places] = values
            done += len(chosen)
            self.bar.update(len(chosen))
        return pooled

    def _found(self, group: RowSet, order: list[int], done: int) -> Finished | None:
        """Return the next batch of the journal, if it is the one that would be run now."""
        found = self._next
        if found is None:
            return None
        if found.label != group.label or found.rows != order[done : done + len(found.rows)]:
            return None
        self._next = next(self._pending, None)
        return found

    def _attempt(self, group: RowSet, chosen: list[int], step: Step) -> Pooled | None:
        """Run one batch; on running out of memory halve the batch size and return None."""
        longest = max(len(group.rows[i].ids) for i in chosen)
        try:
            batch = pad(
                [group.rows[i] for i in chosen],
                pad_id=self.pad_id,
                side=self.side,
                device=device_of(self.model),
            )
            return step(batch, group, chosen)
        except NonFiniteStateError as error:
            where = f" of {group.label}" if group.label else ""
            raise InputError(
                f"the state at {error.site} for row {chosen[error.row]}{where} is not finite (NaN "
                "or infinity); load the model in float32 or bfloat16, or check its weights"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(chosen) == 1:
                raise InputError(
                    f"out of memory with a single row of {longest} tokens; use max_tokens, a "
                    "smaller dtype, another device, or load the model layer by layer"
                ) from error
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        self.limit.rows = max(len(chosen) // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def run_whole(job: Job, sets: Sequence[RowSet], reader: SiteReader) -> None:
    """Send every set through the whole model, all sites at once."""

    def step(batch: Batch, _group: RowSet, _chosen: list[int]) -> Pooled:
        return reader.read(job.model, batch)

    with reader:
        for group in sets:
            counted = 0
            found = job.journal.finished(group.label) if job.journal is not None else None
            if found is not None:
                job.gathered.restore(found[0])
                job.limit.rows = found[1]["size"]
                counted = job.gathered.moments[group.label][reader.sites[0]].count
                job.bar.update(counted)
            for window in group.windows():
                if window.start < counted:
                    continue
                job.begin(f"{group.label}:{window.start}")
                job.gathered.take(group, window.start, job.window(group, window, step))
                job.end(group.label, [group.label], reader.sites)
