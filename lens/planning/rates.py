"""How fast this machine is at the model's own work: measured on one block, or given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lens.errors import InputError
from lens.planning.checkpoints import Checkpoint
from lens.planning.models import TORCH_DTYPES, config_of, observed
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
    training : float
        Operations a second of forward and backward passes together.
    bandwidth : float
        Bytes a second that the optimizer moves.
    source : "measured" or "given"
        Where they are from.
    about : str
        What was measured.
    """

    forward: float
    training: float
    bandwidth: float
    source: Literal["measured", "given"] = "given"
    about: str = ""

    def __post_init__(self) -> None:
        """Refuse a rate that is none."""
        for name in ("forward", "training", "bandwidth"):
            if not getattr(self, name) > 0:
                raise InputError(f"rate {name} is {getattr(self, name)}; expected more than 0")


def calibrate(
    checkpoint: Checkpoint,
    structure: Structure,
    *,
    blocks_name: str,
    dtype: str,
    cache: tuple[int, int],
    load: Load,
    trust_remote_code: bool = False,
) -> Rates:
    """Run one block of the model, with made-up weights, in the shapes that training will have.

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
    cache : (int, int)
        Rows and tokens of a batch that is cached.
    load : Load
        A pass of a step.
    trust_remote_code : bool
        Allow code that comes with the checkpoint to run.

    Returns
    -------
    Rates
        A measurement of the moment: an estimate, on a machine that others may use as well.

    Notes
    -----
    A block of more than 2 GB is not made; square matrices of 2048 are multiplied in its place.
    """
    import torch

    working = getattr(torch, TORCH_DTYPES[dtype])
    bandwidth = _bandwidth()
    square = _square_rate(working)
    size = max(structure.of_block) * working.itemsize
    if size > _LARGEST_BLOCK:
        about = f"a matrix product of 2048 in {TORCH_DTYPES[dtype]}: a block is too large to try"
        return Rates(square, square, bandwidth, "measured", about)
    block = _Block(checkpoint, blocks_name, working, trust_remote_code)
    per_token = 2 * max(structure.of_block)
    most = max(1, int(_PATIENCE * square / (3 * per_token)))
    forward = block.rate(*_cut(*cache, most), backward=False)
    training = block.rate(*_cut(load.rows, load.tokens, most), backward=True)
    threads = torch.get_num_threads()
    about = f"one block in {TORCH_DTYPES[dtype]}, {threads} thread{'s' if threads > 1 else ''}"
    return Rates(forward, training, bandwidth, "measured", about)


def _cut(rows: int, tokens: int, most: int) -> tuple[int, int]:
    """Fewer rows, then fewer tokens, so that no more than ``most`` tokens are run."""
    tokens = max(1, min(tokens, most))
    return max(1, min(rows, most // tokens)), tokens


class _Block:
    """The last block of a model with constant weights, run by the model's own code."""

    def __init__(
        self, checkpoint: Checkpoint, blocks_name: str, dtype: Any, trust_remote_code: bool
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        config = config_of(checkpoint, trust_remote_code)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            ).eval()
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
