"""What is known of a model and of rows of text, whatever is to be done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lens.errors import InputError
from lens.planning import checks
from lens.planning.checkpoints import Checkpoint
from lens.planning.models import TORCH_DTYPES, Ghost, Work, make_ghost, parts_of
from lens.planning.plans import Model, Problem
from lens.planning.rows import Encoding, Lengths, Rows, lengths_of, read_rows
from lens.planning.structures import Structure, structure_of
from lens.stored import DTYPES

if TYPE_CHECKING:
    from lens.models.chat import ChatOptions

_DTYPES = {
    "float32": "F32", "fp32": "F32", "bfloat16": "BF16", "bf16": "BF16", "float16": "F16",
    "fp16": "F16", "float64": "F64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Settings that every job has."""

    languages: Sequence[str] | None = None
    limit: int | None = None
    tokens: int | None = None
    chat: ChatOptions | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False


R = TypeVar("R", bound=Asked)


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
    ghost: Ghost | None = None
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

    def _ghost(self, dtype: str, any_kind: bool) -> Ghost:
        return make_ghost(
            self.checkpoint, dtype=dtype, any_kind=any_kind,
            trust_remote_code=self.request.trust_remote_code,
        )  # fmt: skip

    def look_at_rows(
        self,
        given: Rows | str | Path,
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

    def worked(self, action: Callable[[Ghost], tuple[Work, ...] | None]) -> tuple[Work, ...] | None:
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

    def described(self, *, trained: int = 0, layers: tuple[int, ...] = ()) -> Model | None:
        """Describe the model, as far as it is known."""
        if self.structure is None:
            return None
        each = sorted(self.structure.of_block)
        named = self.checkpoint.config.get("architectures")
        family = named[0] if named else self.checkpoint.config.get("model_type", "unknown")
        return Model(
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
