"""How fast this machine is at the model's own work: measured on one block, or given."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lens.errors import InputError
from lens.planning.checkpoints import Checkpoint
from lens.planning.models import TORCH_DTYPES, config_of, kind_of, observed
from lens.planning.structures import Structure

if TYPE_CHECKING:
    from lens.planning.work import Load

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
    block = _Block(checkpoint, blocks_name, working, any_kind, trust_remote_code)
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


class _Block:
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
