"""One side of the Lens step benchmark: seconds a step, peak bytes, libraries' bytes, first loss."""

from __future__ import annotations

import argparse
import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lens.space.space import Space
from lens.training.config import PRESETS
from lens.training.objective import geometries
from lens.training.trainer import LensTrainer

LANGUAGES = ("eng_Latn", "spa_Latn", "ind_Latn", "swh_Latn", "tur_Latn", "rus_Cyrl", "zho_Hans")
WIDTH, BLOCKS, TOKENS, VOCABULARY, PROMPTS = 768, 24, 64, 32_000, 8
CONFIG = PRESETS["lens-paper"].model_copy(update={"batch_size": PROMPTS, "micro_batch_size": 1})


def make_model() -> Any:
    """Random-weight Llama of 24 blocks, float32, in memory."""

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_hidden_layers=BLOCKS,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    return LlamaForCausalLM(config).eval()


def load_model(folder: Path) -> Any:
    """The same from its checkpoint, as every side but one has it."""
    return LlamaForCausalLM.from_pretrained(folder).eval()


def make_prompts() -> dict[str, list[list[int]]]:
    """Random token ids, parallel over languages."""
    rng = np.random.default_rng(0)
    shape = (PROMPTS, TOKENS)
    return {lang: rng.integers(5, VOCABULARY, shape).tolist() for lang in LANGUAGES}


def make_space(width: int = WIDTH) -> Space:
    """A space from random states, the same on every side."""
    rng = np.random.default_rng(1)
    states = {
        lang: rng.normal(size=(20, width)) + rng.normal(size=width) + 2.0 for lang in LANGUAGES
    }
    return Space.from_states({"final": states}, pivot=LANGUAGES[0])


class Published:
    """The published losses over two whole models, in plain torch.

    ``names``: trained parameters, by default all of the top two blocks.
    """

    def __init__(
        self,
        model: Any,
        frozen: Any,
        prompts: dict[str, list[list[int]]],
        space: Space,
        *,
        batched: bool = False,
        names: Iterable[str] = (),
    ) -> None:
        self.model, self.frozen, self.batched = model, frozen, batched
        self.model.requires_grad_(False)
        top = [p for block in self.model.model.layers[-2:] for p in block.parameters()]
        self.band = [self.model.get_parameter(name) for name in names] or top
        for parameter in self.band:
            parameter.requires_grad_(True)
        self.ids = {lang: [torch.tensor([row]) for row in rows] for lang, rows in prompts.items()}
        self.at = geometries(space, ("final",), CONFIG)["final"]
        self.optimizer = torch.optim.AdamW(self.band, lr=1e-5, weight_decay=0.1)

    def states(self, model: Any, prompt: int) -> dict[str, Tensor]:
        """Final states (1, t, d) of one prompt in every language, float32."""
        rows = {lang: ids[prompt] for lang, ids in self.ids.items()}
        if self.batched:
            out = model.base_model(torch.cat(list(rows.values())), use_cache=False)
            return dict(zip(rows, out.last_hidden_state.split(1), strict=True))
        found = {
            lang: model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
            for lang, ids in rows.items()
        }
        return {lang: states.float() for lang, states in found.items()}

    def loss(self, prompt: int) -> Tensor:
        """Token-mean retain, and separate and two-sided align of every language."""
        h = self.states(self.model, prompt)
        with torch.no_grad():
            h0 = self.states(self.frozen, prompt)
        pivot = LANGUAGES[0]
        total = (h[pivot].mean(1) - h0[pivot].mean(1)).square().mean()
        unit = self.at.agnostic / self.at.agnostic.norm()
        for lang in LANGUAGES[1:]:
            new, old = h[lang][:, -1], h0[lang][:, -1]
            moved = (new - old) @ self.at.basis @ self.at.basis.T
            total = total + (moved - self.at.basis @ self.at.step[lang]).square().mean()
            gap = ((h[pivot][:, -1] - new) @ unit)[:, None] * unit
            total = total + gap.square().mean()
        return total

    def step(self) -> float:
        """Accumulate all prompts, then one optimizer step; returns the mean loss."""
        total = 0.0
        count = len(self.ids[LANGUAGES[0]])
        for prompt in range(count):
            loss = self.loss(prompt) / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.band, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def _published(model: Any, *, batched: bool) -> tuple[float, float]:
    side = Published(model, copy.deepcopy(model), make_prompts(), make_space(), batched=batched)
    loss = side.step()
    return _median(side.step, 2), loss


def _lens(model: Any) -> tuple[float, float]:
    trainer = LensTrainer(model, None, make_space(), make_prompts(), cache_batch=8, low_memory=True)
    result = trainer.run(CONFIG.model_copy(update={"steps": 2, "learning_rate": 1e-5}))
    steps = 6
    timed = trainer.run(CONFIG.model_copy(update={"steps": steps, "learning_rate": 1e-5}))
    return timed.seconds / steps, result.log[0]["loss"]


def _median(action: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def peak() -> int:
    """Bytes of memory this process has had at most, mapped files included."""
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Measure the side named on the command line, or write the checkpoint they load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("published", "batched", "lens", "lens-in-memory", "write"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    libraries = peak()
    if given.side == "write":
        make_model().save_pretrained(given.folder)
        print("{}")
        return
    model = make_model() if given.side == "lens-in-memory" else load_model(given.folder)
    if given.side.startswith("lens"):
        seconds, loss = _lens(model)
    else:
        seconds, loss = _published(model, batched=given.side == "batched")
    found = {"seconds": seconds, "peak": peak(), "libraries": libraries, "loss": loss}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
