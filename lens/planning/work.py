"""Operations and memory of caching and of a training step, by running them without values.

The step is run as training runs it (`lens.models.prefix.PrefixCache`, the same hooks, the model's
own code), on fake tensors. Only the losses, which are computed in C, are stood in for by torch
expressions of the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from lens.planning.models import LARGE_BLOCK, Ghost, Work, attempted, observed
from lens.planning.structures import Shape, Structure

if TYPE_CHECKING:
    from lens.lsm.config import LensConfig


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
class Step:
    """Work of the first pass of a step, and of one that adds to gradients of an earlier one."""

    first: Work
    again: Work


def forward_work(ghost: Ghost, *, rows: int, tokens: int, padded: bool = False) -> Work | None:
    """Work of sending rows through the frozen model, without logits; padded ones need a mask."""
    import torch

    def run() -> Work:
        with ghost.mode, torch.no_grad(), observed() as work:
            ids = torch.zeros(rows, tokens, dtype=torch.int64)
            masked = {"attention_mask": torch.ones_like(ids)} if padded else {}
            ghost.model.base_model(input_ids=ids, use_cache=False, **masked)
        return work

    return attempted(run)


def step_work(
    ghost: Ghost, parts: Any, trained: Trained, config: LensConfig, load: Load
) -> Step | None:
    """Work of one pass of a training step, forward and backward."""
    from lens.lsm.optimizing import only_trainable
    from lens.lsm.running import recomputing
    from lens.models.prefix import PrefixCache

    first = min(trained.layers)
    blocks = list(parts.blocks[first:]) if trained.checkpointing else []
    passes: list[Work] = []

    def run() -> Work:
        with ghost.mode:
            parameters = _parameters(ghost.model, trained)
            cache = PrefixCache(ghost.model, parts, first_block=first, sites=config.sites)
            with only_trainable(ghost.model, parameters), recomputing(blocks):
                for _ in range(2):
                    with observed() as work:
                        _loss(cache, parts, config, load).backward()
                    passes.append(work)
        return passes[-1]

    return None if attempted(run) is None else Step(*passes)


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

    from lens.lsm.config import LanguageModel, PivotKL, Retain
    from lens.lsm.positions import gather
    from lens.models.heads import logits
    from lens.models.sites import FINAL

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

    from lens.models.prefix import Batch

    dtype = next(cache.parts.blocks.parameters()).dtype
    return Batch(
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
) -> Work:
    """Work of the frozen model from shapes alone; ``share`` of the experts is used."""
    flops = sum(_flops(block, tokens, share) for block in structure.blocks) * rows * tokens
    alive = max(_widths(block) for block in structure.blocks) + 2 * structure.width
    return _work(flops, rows * tokens * itemsize * alive)


def step_formula(
    structure: Structure, trained: Trained, config: LensConfig, load: Load, *, itemsize: int,
    share: float = 1.0,
) -> Step:  # fmt: skip
    """Work of a pass from shapes alone."""
    from lens.lsm.config import LanguageModel, PivotKL

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
    return Step(work, work)


def _work(flops: int, kept: int) -> Work:
    """Work whose tensors are of the usual number; the larger they are, the fewer in the heap."""
    return Work(flops, kept, kept if kept < _USUAL_BLOCKS * LARGE_BLOCK else 0)


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
