"""Find out all that a plan of a probe is made from, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lens.errors import InputError
from lens.planning import checks
from lens.planning.known import Asked, Known
from lens.planning.plans import Model, Problem
from lens.planning.rows import Encoding, Rows, read_rows
from lens.planning.structures import count

if TYPE_CHECKING:
    from lens.models.batching import BatchLimit
    from lens.models.chat import Role
    from lens.models.pooling import Pooling
    from lens.models.sites import SiteSpec
    from lens.space.states import StatesDtype

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest(Asked):
    """What is to be planned; every setting as in `lens.probe`."""

    pivot: str = "eng_Latn"
    sites: SiteSpec = "all"
    pooling: Pooling = "mean"
    role: Role = "text"
    prompts: Rows | str | Path | None = None
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
    def model(self) -> Model | None:
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

    def look(self, rows: Rows | str | Path) -> None:
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
            from lens.models.chat import ChatOptions

            plain = ChatOptions(template=False) if request.role == "text" else chat
            self.problems += checks.of_tokenizer(self.checkpoint, self.structure, plain)
            self._try("memory", self._look_at_memory)

    def _look_at_settings(self) -> None:
        """Sites, batches, and whether what will be written may be."""
        from lens.io import refuse_existing
        from lens.models.batching import batch_limit
        from lens.models.capturing.journal import Journal
        from lens.models.sites import resolve_sites
        from lens.space.keeping import check_target
        from lens.stats import MODES

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
            self._try("out", lambda: Journal(request.work, resume=resumed, force=forced))
        if request.keep_states is not None:
            folder = Path(request.keep_states)
            self._try(
                "states", lambda: check_target(folder, request.states_dtype, force=request.force)
            )
        elif request.choose_ranks:
            self._add("states", "ranks are chosen on the states of every row; name a folder for "
                      "them (--keep-states)")  # fmt: skip

    def _prompts(self) -> Rows | None:
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

        def read() -> Rows:
            rows = read_rows(given, languages=languages, limit=None, min_rows=1)
            return {canonical(lang): texts for lang, texts in rows.items()}

        return self._try("prompts", read)

    @property
    def config(self) -> Any:
        """Config of the text stack, the library's where it is there."""
        if self.ghost is None:
            return self.checkpoint.text_config
        from lens.models.blocks import text_config

        return text_config(self.ghost.model)

    def _look_at_positions(self) -> None:
        from lens.models.limits import number_in

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
        from lens.models.batching import WINDOW
        from lens.models.limits import require_room_for, tokens_beside
        from lens.sizes import size_in_bytes

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
