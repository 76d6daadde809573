"""Find out all that a plan of training is made from, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.errors import InputError
from lens.planning import checks
from lens.planning.checkpoints import Checkpoint
from lens.planning.models import TORCH_DTYPES, Ghost, make_ghost, parts_of
from lens.planning.plans import Model, Problem
from lens.planning.rows import Lengths, Rows, lengths_of, read_rows
from lens.planning.structures import Shape, Structure, adapter_count, count, structure_of
from lens.stored import DTYPES

if TYPE_CHECKING:
    from lens.lsm import LensConfig, Lora
    from lens.models.chat import ChatOptions
    from lens.space import Space

_DTYPES = {
    "float32": "F32", "fp32": "F32", "bfloat16": "BF16", "bf16": "BF16", "float16": "F16",
    "fp16": "F16", "float64": "F64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be planned; every setting as in `lens.train`."""

    layers: str = "-2:"
    train: str = "full"
    lora: int | Lora | None = None
    losses: str | LensConfig | dict[str, Any] = "pinned"
    space: Space | str | Path | None = None
    validation: Rows | str | Path | None = None
    chat: ChatOptions | None = None
    dtype: str = "auto"
    low_memory: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: int | None = None
    cache: str | Path | None = None
    max_memory: str | int | None = None
    out: str | Path | None = None
    languages: Sequence[str] | None = None
    limit: int | None = None
    tokens: int | None = None
    answer_tokens: int | None = None
    trust_remote_code: bool = False


@dataclass(slots=True)
class Findings:
    """What is known of a run; `look` finds it out, and lists every problem on the way.

    Attributes
    ----------
    checkpoint : Checkpoint
        Config and headers.
    request : Request
        What is to be planned.
    quick : bool
        Whether torch and transformers are left alone.
    problems, notes : list
        What is wrong, and assumptions behind the figures.
    ghost : Ghost or None
        The model without values.
    structure : Structure or None
        Its parts; None where they were not found.
    layers, chosen : tuple of int, dict
        Trained blocks, and the shapes of what is trained in them.
    lengths, held_out : Lengths or None
        Tokens of the prompts, and of those for validation.
    dtype : str
        Working dtype, as safetensors names it.
    """

    checkpoint: Checkpoint
    request: Request
    quick: bool
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ghost: Ghost | None = None
    structure: Structure | None = None
    layers: tuple[int, ...] = ()
    chosen: dict[str, Shape] = field(default_factory=dict)
    lengths: Lengths | None = None
    held_out: Lengths | None = None
    dtype: str = "F32"

    @property
    def config(self) -> LensConfig:
        """Losses and optimizer settings."""
        from lens.lsm.config import resolve

        return resolve(self.request.losses)

    @property
    def countable(self) -> bool:
        """Whether enough is known to count work and memory."""
        return self.structure is not None and bool(self.chosen) and self.lengths is not None

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the working dtype."""
        return DTYPES[self.dtype].size

    def look(self, prompts: Rows | str | Path) -> None:
        """Find out everything that can be found out without measuring."""
        self.problems += checks.of_files(self.checkpoint)
        self._look_at_dtype()
        self._look_at_model()
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

    def _look_at_dtype(self) -> None:
        wanted = self.request.dtype
        if wanted != "auto" and wanted not in _DTYPES:
            raise InputError(f"unknown dtype '{wanted}'; expected auto, {', '.join(_DTYPES)}")
        self.dtype = self.checkpoint.dtype if wanted == "auto" else _DTYPES[wanted]

    def _look_at_model(self) -> None:
        """Find blocks in the headers, else in the config; compare the two where both are there."""
        if self.checkpoint.tensors:
            try:
                self.structure = structure_of(self.checkpoint)
                self.problems += checks.of_structure(self.checkpoint, self.structure)
            except InputError as error:
                self.problems.append(Problem("architecture", str(error)))
        if self.quick and self.checkpoint.tensors:
            return
        try:
            self.ghost = self._ghost(self.dtype)
        except InputError as error:
            self.problems.append(Problem("architecture", str(error)))
            return
        if self.checkpoint.tensors:
            known = {problem.text for problem in self.problems}
            found = checks.of_architecture(self.checkpoint, self.ghost)
            self.problems += [problem for problem in found if problem.text not in known]
        else:
            self.structure = self.ghost.structure(self.checkpoint)

    def _ghost(self, dtype: str) -> Ghost:
        trusted = self.request.trust_remote_code
        return make_ghost(self.checkpoint, dtype=dtype, trust_remote_code=trusted)

    def _look_at_band(self) -> None:
        """Resolve layers, sites and what of them is trained."""
        from lens.models.sites import block_index, resolve_layers

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
        from lens.space import Space

        given = self.request.space
        if given is None or isinstance(given, Space):
            return given
        try:
            return Space.load(given)
        except (InputError, OSError) as error:
            self.problems.append(Problem("space", str(error)))
            return None

    def _look_at_rows(
        self, given: Rows | str | Path, space: Space | None, what: str
    ) -> Lengths | None:
        request = self.request
        found: list[Problem] = []
        try:
            rows = read_rows(given, languages=request.languages, limit=request.limit)
            pivot = None if space is None else space.pivot
            lengths = lengths_of(
                rows, self.checkpoint, pivot=pivot, tokens=request.tokens, chat=request.chat,
                quick=self.quick, problems=found,
            )  # fmt: skip
        except InputError as error:
            found.append(Problem(what, str(error)))
            lengths = None
        self.problems += [Problem(what if p.about == "prompts" else p.about, p.text) for p in found]
        if lengths is not None and lengths.source == "bytes":
            self.notes.append(f"{what}: no tokenizer was used, a token is taken as 3 bytes of text")
        return lengths

    @property
    def model(self) -> Model | None:
        """What the model is, as far as it is known."""
        if self.structure is None:
            return None
        each = sorted(self.structure.of_block)
        named = self.checkpoint.config.get("architectures")
        family = named[0] if named else self.checkpoint.config.get("model_type", "unknown")
        return Model(
            str(family), TORCH_DTYPES[self.dtype], self.structure.parameters,
            each[len(each) // 2], self.trained, len(each), self.structure.width,
            self.structure.vocabulary, self.layers,
            "headers" if self.checkpoint.tensors else "config",
        )  # fmt: skip

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        lora = self.request.lora
        if lora is None:
            return count(self.chosen)
        return adapter_count(self.chosen, rank_of(lora), dora=bool(getattr(lora, "dora", False)))

    def parts(self) -> tuple[Any, str]:
        """Parts of the model without values, where it can be run, and the name of its blocks."""
        if self.ghost is None:
            return None, "" if self.structure is None else self.structure.blocks_name
        try:
            parts = parts_of(self.ghost)
        except (InputError, RuntimeError):  # values decide what is run, as in a mixture of experts
            return None, self.ghost.structure(self.checkpoint).blocks_name
        return parts, parts.blocks_name


def rank_of(lora: int | Lora) -> int:
    """Rank of adapters, however it was given."""
    return lora if isinstance(lora, int) else lora.rank
