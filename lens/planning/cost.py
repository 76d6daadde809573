"""Cost of a job: FLOPs, memory, disk and time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from lens.errors import InputError
from lens.models.checkpoint import Checkpoint
from lens.planning.model import (
    LARGE_BLOCK,
    TORCH_DTYPES,
    BlockWork,
    MetaModel,
    Shape,
    Structure,
    attempted,
    config_of,
    kind_of,
    observed,
)

if TYPE_CHECKING:
    from lens.training.config import LensConfig

# What AdamW with clipping moves for one element: reads and writes in float32, as torch does them.
BYTES_PER_UPDATE = 80
_BUDGET = 0.6  # seconds that a measurement is repeated for
_PATIENCE = 2.0  # seconds that one pass of a block may take; larger ones are cut
_LARGEST_BLOCK = 2e9  # bytes


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds that turn work into time.

    Attributes
    ----------
    forward : float
        Operations a second of the frozen model.
    training : float or None
        Operations a second of forward and backward passes together.
    bandwidth : float or None
        Bytes a second that the optimizer moves.
    source : "measured" or "given"
        Where they are from.
    about : str
        What was measured.
    reading : float or None
        Bytes a second that the disk of the checkpoint gives, nothing of them being in memory.
    opening : float or None
        Seconds that transformers takes to open the checkpoint for one block, reading apart.
    """

    forward: float
    training: float | None = None
    bandwidth: float | None = None
    source: Literal["measured", "given"] = "given"
    about: str = ""
    reading: float | None = None
    opening: float | None = None

    def __post_init__(self) -> None:
        """Refuse a rate that is none."""
        for name in ("forward", "training", "bandwidth", "reading", "opening"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise InputError(f"rate {name} is {rate}; expected more than 0")


def seconds(flops: float, rate: float | None, traffic: float, moved: float | None) -> float | None:
    """Time of operations at a rate, and of bytes at another; None where one of them is unknown."""
    if (flops and rate is None) or (traffic and moved is None):
        return None
    return (flops / rate if rate else 0.0) + (traffic / moved if moved else 0.0)


def calibrate(
    checkpoint: Checkpoint,
    structure: Structure,
    *,
    blocks_name: str,
    dtype: str,
    forward: tuple[int, int],
    load: Load | None = None,
    by_layer: bool = False,
    any_kind: bool = False,
    trust_remote_code: bool = False,
) -> Rates:
    """Run one block of the model, with made-up weights, in the shapes that the job will have.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its config decides the block.
    structure : Structure
        Sizes, to choose how much is run.
    blocks_name : str
        Dotted name of the list of blocks in the model.
    dtype : str
        Working dtype.
    forward : (int, int)
        Rows and tokens of a batch through the frozen model.
    load : Load, optional
        A pass of a step; without one nothing of training is measured.
    by_layer : bool
        Measure what opening the checkpoint for a block takes.
    any_kind, trust_remote_code : bool
        As in `make_ghost`.

    Returns
    -------
    Rates
        A measurement of the moment: an estimate, on a machine that others may use as well.
        A block of more than 2 GB is not made; square matrices of 2048 are multiplied in its place.
    """
    import torch

    working = getattr(torch, TORCH_DTYPES[dtype])
    bandwidth = None if load is None else _bandwidth()
    reading = _reading_rate(checkpoint) if load is None else None
    opened = by_layer and bool(checkpoint.tensors)
    opening = _opening_time(checkpoint, working, any_kind, trust_remote_code) if opened else None
    square = _square_rate(working)
    size = max(structure.of_block) * working.itemsize
    if size > _LARGEST_BLOCK:
        about = f"a matrix product of 2048 in {TORCH_DTYPES[dtype]}: a block is too large to try"
        backward = None if load is None else square
        return Rates(square, backward, bandwidth, "measured", about, reading, opening)
    block = _TimedBlock(checkpoint, blocks_name, working, any_kind, trust_remote_code)
    most = max(1, int(_PATIENCE * square / (6 * max(structure.of_block))))  # tokens
    ahead = block.rate(*_cut(*forward, most), backward=False)
    cut = None if load is None else _cut(load.rows, load.tokens, most)
    training = None if cut is None else block.rate(*cut, backward=True)
    threads = torch.get_num_threads()
    about = f"one block in {TORCH_DTYPES[dtype]}, {threads} thread{'s' if threads > 1 else ''}"
    return Rates(ahead, training, bandwidth, "measured", about, reading, opening)


def _cut(rows: int, tokens: int, most: int) -> tuple[int, int]:
    """Fewer rows, then fewer tokens, so that no more than ``most`` tokens are run."""
    tokens = max(1, min(tokens, most))
    return max(1, min(rows, most // tokens)), tokens


class _TimedBlock:
    """The last block of a model with constant weights, run by the model's own code."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        blocks_name: str,
        dtype: Any,
        any_kind: bool,
        trust_remote_code: bool,
    ) -> None:
        import torch

        config = config_of(checkpoint, trust_remote_code)
        with torch.device("meta"):
            model: Any = (
                kind_of(config, any_kind)
                .from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
                .eval()
            )
        owner, _, name = blocks_name.rpartition(".")
        self.block = model.get_submodule(blocks_name)[-1]
        setattr(model.get_submodule(owner), name, torch.nn.ModuleList([self.block]))
        embedding = model.get_input_embeddings()
        self.model, self.width, self.dtype = model.base_model, embedding.weight.shape[-1], dtype
        left_out = {id(embedding), id(model.get_output_embeddings())}
        for module in model.modules():
            if id(module) not in left_out:
                _fill(module)

    def rate(self, rows: int, tokens: int, *, backward: bool) -> float:
        """Operations a second of forward passes, or of forward and backward ones."""
        import torch

        self.model.requires_grad_(False)
        self.block.requires_grad_(backward)
        given = torch.randn(rows, tokens, self.width, dtype=self.dtype)

        def run() -> None:
            with torch.set_grad_enabled(backward):
                out = self.model(inputs_embeds=given, use_cache=False).last_hidden_state
                if backward:
                    out.sum().backward()

        with observed() as work:
            run()
        return work.flops / _seconds(run)


def _fill(module: Any) -> None:
    """Give the own tensors of a module memory and small values, in place of none."""
    import torch

    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None and tensor.is_meta:
                made = torch.full_like(tensor, 1, device="cpu")
                if made.is_floating_point():
                    made.fill_(0.01)
                held[name] = torch.nn.Parameter(made) if held is module._parameters else made


def _square_rate(dtype: Any, size: int = 2048) -> float:
    """Operations a second of a large matrix product."""
    import torch

    a = torch.full((size, size), 0.01, dtype=dtype)
    return 2.0 * size**3 / _seconds(lambda: a @ a)


def _bandwidth(count: int = 1 << 23) -> float:
    """Bytes a second that AdamW with clipping moves."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(count))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.full((count,), 0.01)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()

    return BYTES_PER_UPDATE * count / _seconds(update)


def _reading_rate(checkpoint: Checkpoint, size: int = 32 << 20) -> float | None:
    """Bytes a second of the end of the largest file, after its pages have been given up."""
    if not checkpoint.files or not hasattr(os, "posix_fadvise"):
        return None
    name = max(checkpoint.files, key=lambda file: checkpoint.files[file])
    start = max(0, checkpoint.files[name] - size)
    with (checkpoint.folder / name).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), start, 0, os.POSIX_FADV_DONTNEED)
        file.seek(start)
        began = time.perf_counter()
        read = len(file.read(size))
        return read / (time.perf_counter() - began) if read else None


def _opening_time(
    checkpoint: Checkpoint, dtype: Any, any_kind: bool, trust_remote_code: bool
) -> float:
    """Seconds of loading everything to nowhere, each tensor named as when a block is loaded."""
    from lens.models.loading import quiet_bars

    def load(device_map: dict[str, str]) -> Any:
        with quiet_bars(always=True):
            config = config_of(checkpoint, trust_remote_code)
            return kind_of(config, any_kind).from_pretrained(
                checkpoint.folder, dtype=dtype, device_map=device_map,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip

    names = {name: "meta" for name, _ in load({"": "meta"}).named_parameters()}
    began = runs = 0.0  # a mean: now and then Python collects what is left of so many objects
    while runs < 9 or time.perf_counter() - began < _BUDGET:
        load(names)
        runs, began = runs + 1, began if runs else time.perf_counter()
    return (time.perf_counter() - began) / (runs - 1)


def _seconds(action: Callable[[], object]) -> float:
    """Median time of an action, after one run that is not counted."""
    action()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _BUDGET and len(times) < 50):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
        if sum(times) > 2 * _PATIENCE:
            break
    return sorted(times)[len(times) // 2]


@dataclass(frozen=True, slots=True)
class Load:
    """Size of one forward and backward pass.

    Attributes
    ----------
    prompts, languages : int
        Prompts in a pass, each in so many languages, the pivot among them.
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


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained, and how.

    Attributes
    ----------
    layers : tuple of int
        Blocks.
    names : tuple of str
        Full names of the trained parameters, or of the weights that adapters go on.
    lora : Lora or None
        Adapters.
    checkpointing : bool
        Whether activations are computed again in the backward pass.
    """

    layers: tuple[int, ...]
    names: tuple[str, ...]
    lora: Any = None
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class StepCost:
    """Work of the first pass of a step, and of one that adds to gradients of an earlier one."""

    first: BlockWork
    again: BlockWork


def forward_work(
    ghost: MetaModel, *, rows: int, tokens: int, padded: bool = False
) -> BlockWork | None:
    """Work of sending rows through the frozen model, without logits; padded ones need a mask."""
    import torch

    def run() -> BlockWork:
        with ghost.mode, torch.no_grad(), observed() as work:
            ids = torch.zeros(rows, tokens, dtype=torch.int64)
            masked = {"attention_mask": torch.ones_like(ids)} if padded else {}
            ghost.model.base_model(input_ids=ids, use_cache=False, **masked)
        return work

    return attempted(run)


def step_work(
    ghost: MetaModel, parts: Any, trained: Trained, config: LensConfig, load: Load
) -> StepCost | None:
    """Work of one pass of a training step, forward and backward."""
    from lens.models.prefix_cache import PrefixCache
    from lens.training.optimizer import only_trainable
    from lens.training.run import recomputing

    first = min(trained.layers)
    blocks = list(parts.blocks[first:]) if trained.checkpointing else []
    passes: list[BlockWork] = []

    def run() -> BlockWork:
        with ghost.mode:
            parameters = _parameters(ghost.model, trained)
            cache = PrefixCache(ghost.model, parts, first_block=first, sites=config.sites)
            with only_trainable(ghost.model, parameters), recomputing(blocks):
                for _ in range(2):
                    with observed() as work:
                        _loss(cache, parts, config, load).backward()
                    passes.append(work)
        return passes[-1]

    return None if attempted(run) is None else StepCost(*passes)


def _parameters(model: Any, trained: Trained) -> list[Any]:
    """Return the trained parameters; adapters are put on as PEFT computes them."""
    if trained.lora is None:
        return [model.get_parameter(name) for name in trained.names]
    found = []
    for name in trained.names:
        found += _adapted(model.get_submodule(name.removesuffix(".weight")), trained.lora)
    return found


def _adapted(linear: Any, lora: Any) -> list[Any]:
    """Add a float32 adapter to a linear layer by a hook; PEFT itself cannot move fake tensors."""
    import torch

    n_in, n_out = linear.weight.shape
    if type(linear).__name__ != "Conv1D":
        n_in, n_out = n_out, n_in
    sizes = [(lora.rank, n_in), (n_out, lora.rank), *([(n_out,)] if lora.dora else [])]
    down, up, *lengths = (torch.nn.Parameter(torch.zeros(size)) for size in sizes)

    def add(_module: Any, args: Any, out: Any) -> Any:
        more = args[0].to(down.dtype) @ down.T @ up.T * (lora.scale / lora.rank)
        if lengths:
            with torch.no_grad():
                whole = linear.weight.float() + (up @ down).reshape(linear.weight.shape)
                norms = whole.norm(dim=1 if whole.shape[0] == n_out else 0)
            scale = lengths[0] / norms
            return (scale * (out + more)).to(out.dtype)
        return out + more.to(out.dtype)

    linear.register_forward_hook(add)
    return [down, up, *lengths]


def _loss(cache: Any, parts: Any, config: LensConfig, load: Load) -> Any:
    """Sum of stand-ins for the terms; they keep in memory what the terms keep."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    from lens.models.architecture import logits
    from lens.models.layers import FINAL
    from lens.training.config import LanguageModel, PivotKL, Retain
    from lens.training.losses import gather

    batch = _batch(cache, load.rows, load.tokens)
    states = cache.forward(batch)
    total = torch.zeros(())
    for term in config.placed(len(parts.blocks)).active:
        if isinstance(term, PivotKL):
            seen = states[FINAL][: load.prompts]
            if term.rows == "answers":
                seen = cache.forward(_batch(cache, load.prompts, load.answer_tokens))[FINAL]
            seen = seen.flatten(0, 1)
            with torch.no_grad():
                frozen = torch.zeros_like(seen)
                before = log_softmax(logits(cache.model, parts, frozen), dim=-1)
            now = log_softmax(logits(cache.model, parts, seen), dim=-1)
            total = total + kl_div(now, before, log_target=True, reduction="batchmean")
        elif isinstance(term, LanguageModel):
            rows = load.prompts * (load.languages - 1 + term.pivot)
            given = _batch(cache, rows, load.answer_tokens)
            # of a turn with an answer, what predicts the answer; of text, everything
            kept = load.answer_tokens - (load.tokens if term.rows == "answers" else 0)
            seen = cache.forward(given)[FINAL][:, -max(kept, 1) :].flatten(0, 1)
            targets = torch.zeros(len(seen), dtype=torch.int64)
            total = total + cross_entropy(logits(cache.model, parts, seen), targets)
        elif isinstance(term, Retain):
            seen = states[term.site][: load.prompts].float()
            total = total + (seen - torch.zeros_like(seen)).square().mean()
        else:
            seen = gather(states[term.site], batch.lengths, term.positions)[0].float()
            total = total + (seen - torch.zeros_like(seen)).square().mean()
    return total


def _batch(cache: Any, rows: int, tokens: int) -> Any:
    import torch

    from lens.models.prefix_cache import PrefixBatch

    dtype = next(cache.parts.blocks.parameters()).dtype
    return PrefixBatch(
        torch.zeros(rows, tokens, dtype=torch.int64),
        torch.zeros(rows, tokens, cache.parts.width, dtype=dtype),
        torch.full((rows,), tokens),
    )


# By formula, where the architecture is not run: of every matrix, input and output are kept, and
# what norms, gates and attention keep is a share of that (1.1 to 1.5 over the families tested).
_KEPT = 1.3
_USUAL_BLOCKS = 40  # tensors alive at the peak of a band of two blocks


def forward_formula(
    structure: Structure, *, rows: int, tokens: int, itemsize: int, share: float = 1.0
) -> BlockWork:
    """Work of the frozen model from shapes alone; ``share`` of the experts is used."""
    flops = sum(_flops(block, tokens, share) for block in structure.blocks) * rows * tokens
    alive = max(_widths(block) for block in structure.blocks) + 2 * structure.width
    return _work(flops, rows * tokens * itemsize * alive)


def step_formula(
    structure: Structure, trained: Trained, config: LensConfig, load: Load, *, itemsize: int,
    share: float = 1.0,
) -> StepCost:  # fmt: skip
    """Work of a pass from shapes alone."""
    from lens.training.config import LanguageModel, PivotKL

    blocks = structure.blocks[min(trained.layers) :]
    answered = [
        load.prompts if isinstance(term, PivotKL) else load.prompts * (load.languages - 1)
        for term in config.active
        if isinstance(term, LanguageModel) or (isinstance(term, PivotKL) and term.rows == "answers")
    ]
    places = [(load.rows, load.tokens), *((rows, load.answer_tokens) for rows in answered)]
    flops = kept = 0
    for rows, tokens in places:
        flops += 3 * rows * tokens * sum(_flops(block, tokens, share) for block in blocks)
        each = [_KEPT * _widths(block) for block in blocks]
        held = max(each) + structure.width * len(each) if trained.checkpointing else sum(each)
        kept += int(rows * tokens * itemsize * (held + 2 * structure.width))
    wordy = [term for term in config.active if isinstance(term, LanguageModel | PivotKL)]
    for term in wordy:
        rows = load.prompts * (1 if isinstance(term, PivotKL) else load.languages - 1)
        said = load.answer_tokens - (0 if isinstance(term, PivotKL) else load.tokens)
        positions = rows * (said if term.rows == "answers" else load.tokens)
        flops += 6 * positions * structure.width * structure.vocabulary
        kept += 4 * 4 * positions * structure.vocabulary
    work = _work(flops, kept)
    return StepCost(work, work)


def _work(flops: int, kept: int) -> BlockWork:
    """Work whose tensors are of the usual number; the larger they are, the fewer in the heap."""
    return BlockWork(flops, kept, kept if kept < _USUAL_BLOCKS * LARGE_BLOCK else 0)


def _flops(block: dict[str, Shape], tokens: int, share: float) -> int:
    """Operations of a block for one token of a row of so many."""
    total = 0.0
    for name, shape in block.items():
        if len(shape) > 1:
            total += 2 * prod(shape) * (share if "experts" in name else 1.0)
    width = max((s[0] for s in block.values() if len(s) == 1), default=0)
    return int(total + 4 * tokens * width)


def _widths(block: dict[str, Shape]) -> int:
    """Elements that enter and leave the matrices of a block for one token."""
    return sum(shape[-1] + shape[-2] for shape in block.values() if len(shape) > 1)
