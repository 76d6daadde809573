"""Train the sample world's three models, base, chat and mixed, from a seed.

    python docs/studies/sample_world/train_world.py --out DIR [--seed 0] [--threads 2]

About 12 minutes on two cores. With seed 0 the models are those that `lens.demo` ships, bit for bit
on the same processor and versions.
"""

import argparse
import json
import platform
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from world_tokenizer import SPLIT, VOCABULARY, train_tokenizer

from lens.demo.corpus import balanced_rows, chat_pairs, digest, documents
from lens.demo.languages import LANGUAGES, OTHERS, PIVOT
from lens.errors import LensError
from lens.utils.files import new_folder
from lens.utils.progress import shown

_IGNORED = -100  # label of a token that is not learnt


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the outcome, recorded in ``made.json``.

    Attributes
    ----------
    width, blocks, heads, inner : int
        Shape of the Llama-type decoder; ``inner`` is the width inside the MLP.
    documents, steps, rows, row_tokens : int
        Base model: documents written, optimizer steps, rows per step, tokens per row.
    lr_matrix, lr_other : float
        Peak learning rates of Muon (matrices inside the blocks) and AdamW (the rest).
    tune_steps, tune_rows : int
        Chat models: optimizer steps and question-answer pairs per step, the same for both.
    lr_tune : float
        Peak learning rate of AdamW while tuning.
    mixed_share : float
        Share of the pairs of ``mixed`` that are not in English.
    """

    width: int = 128
    blocks: int = 8
    heads: int = 4
    inner: int = 384
    documents: int = 131_000
    steps: int = 1_400
    rows: int = 32
    row_tokens: int = 128
    lr_matrix: float = 1e-2
    lr_other: float = 1e-2
    tune_steps: int = 120
    tune_rows: int = 64
    lr_tune: float = 5e-4
    mixed_share: float = 0.06


def _progress(steps: int, label: str, quiet: bool) -> Any:
    from tqdm.auto import tqdm

    # None: silent unless standard error is a terminal.
    return tqdm(range(steps), desc=label, unit="step", disable=True if quiet else None)


def _schedule(step: int, steps: int) -> float:
    """Warm up over 5 % of the steps, then fall linearly to 2 % of the peak."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, max(0.02, (steps - step) / (steps - warm)))


def _optimizers(model: Any, lr_matrix: float, lr_other: float) -> list[Any]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr_matrix, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr_other, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _fit(model: Any, batches: Iterator[dict[str, Any]], optimizers: list[Any], bar: Any) -> float:
    """Run one optimizer step per batch; return the mean loss of the last tenth of the steps."""
    import torch

    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    model.train()
    losses: list[float] = []
    for step in bar:
        scale = _schedule(step, bar.total)
        for optimizer, lrs in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**next(batches), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _packed_batches(ids: list[list[int]], eos: int, config: TrainConfig) -> Iterator[Any]:
    """Cut the documents, end to end, into full rows: no padding is ever computed."""
    import torch

    flat = torch.tensor([token for row in ids for token in (*row, eos)])
    size = config.rows * config.row_tokens
    while True:
        for start in range(0, len(flat) - size + 1, size):
            x = flat[start : start + size].view(config.rows, config.row_tokens)
            yield {"input_ids": x, "labels": x}


def _new_model(tokenizer: Any, config: TrainConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.blocks,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # On rows this short the plain form is 1.4 times as fast per step as the fused one.
    model.set_attn_implementation("eager")
    return model


def _chat_batches(tokenizer: Any, mixture: dict[str, float], config: TrainConfig, seed: int) -> Any:
    """Yield padded batches of templated pairs; only the answer and its end are learnt."""
    import torch

    pairs = chat_pairs(config.tune_steps * config.tune_rows, mixture=mixture, seed=seed)
    for _ in range(config.tune_steps):
        rows = []
        for prompt, reply in (next(pairs) for _ in range(config.tune_rows)):
            turns = [{"role": "user", "content": prompt}]
            asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            turns.append({"role": "assistant", "content": reply})
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
            skip = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
            rows.append((tokenizer(whole, add_special_tokens=False)["input_ids"], skip))
        longest = max(len(row) for row, _ in rows)
        x = torch.full((len(rows), longest), tokenizer.pad_token_id)
        y = torch.full((len(rows), longest), _IGNORED)
        for i, (row, skip) in enumerate(rows):
            x[i, : len(row)] = torch.tensor(row)
            y[i, skip : len(row)] = torch.tensor(row[skip:])
        # Padding is on the right and causal attention never looks there: no mask is needed.
        yield {"input_ids": x, "labels": y}


def tune(model: Any, tokenizer: Any, *, mixture: dict[str, float], config: TrainConfig,
         seed: int = 0, label: str = "Tuning", quiet: bool = False) -> float:  # fmt: skip
    """Tune a model, in place, on questions and answers about the train facts.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place.
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template.
    mixture : dict of str to float
        FLORES code -> share of the pairs.
    config : TrainConfig
        Steps, batch and learning rate.
    seed : int
        Seed of the pairs.
    label : str
        Text beside the progress bar.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    float
        Mean loss of the last tenth of the steps, nats per token.
    """
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr_tune, betas=(0.9, 0.98), weight_decay=0.01
    )
    batches = _chat_batches(tokenizer, mixture, config, seed)
    return _fit(model, batches, [optimizer], _progress(config.tune_steps, label, quiet))


def mixtures(share: float) -> dict[str, dict[str, float]]:
    """Return the languages of the tuning pairs of each chat model, and their shares."""
    mixed = {PIVOT: 1 - share} | {code: share / len(OTHERS) for code in OTHERS}
    return {"chat": {PIVOT: 1.0}, "mixed": mixed}


def _save(model: Any, tokenizer: Any, path: Path, made: dict[str, Any]) -> None:
    import copy

    import torch

    if path.exists():
        shutil.rmtree(path)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "made.json").write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")


def train(out: str | Path, *, seed: int = 0, config: TrainConfig | None = None,
          threads: int | None = None, quiet: bool = False) -> dict[str, Path]:  # fmt: skip
    """Make the base model and both chat models, and save each as a Hugging Face folder.

    Parameters
    ----------
    out : str or pathlib.Path
        Folder that will hold ``base``, ``chat`` and ``mixed``.
    seed : int
        Decides the text, its order and the initial weights.
    config : TrainConfig, optional
        Sizes, steps and learning rates; the shipped models use the defaults.
    threads : int, optional
        Threads for torch; its own choice by default. The last bits depend on it.
    quiet : bool
        Show no progress bars.

    Returns
    -------
    dict of str to pathlib.Path
        Name of each model -> its folder.
    """
    import copy

    import torch
    import transformers

    config = config or TrainConfig()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)
    rows = list(documents(config.documents, seed=seed))
    tokenizer = train_tokenizer(balanced_rows(seed=seed))
    made = {
        "command": f"python docs/studies/sample_world/train_world.py --seed {seed}",
        "seed": seed,
        "config": asdict(config),
        "vocabulary": VOCABULARY,
        "split": SPLIT,
        "languages": LANGUAGES,
        "corpus_sha256": digest(rows),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    base = _new_model(tokenizer, config)
    batches = _packed_batches(tokenizer(rows)["input_ids"], tokenizer.eos_token_id, config)
    optimizers = _optimizers(base, config.lr_matrix, config.lr_other)
    loss = _fit(base, batches, optimizers, _progress(config.steps, "Training base", quiet))
    out = Path(out)
    _save(base, tokenizer, out / "base", made | {"loss": round(loss, 4)})
    for name, mixture in mixtures(config.mixed_share).items():
        model = copy.deepcopy(base)
        loss = tune(model, tokenizer, mixture=mixture, config=config, seed=seed,
                    label=f"Tuning {name}", quiet=quiet)  # fmt: skip
        _save(model, tokenizer, out / name, made | {"mixture": mixture, "loss": round(loss, 4)})
    return {name: out / name for name in ("base", "chat", "mixed")}


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("lens-world"), help="folder to create")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--force", action="store_true", help="replace --out")
    given = parser.parse_args()
    try:
        with new_folder(given.out, force=given.force) as folder:
            trained = train(folder, seed=given.seed, threads=given.threads, quiet=not shown())
            names = [path.relative_to(folder) for path in trained.values()]
    except LensError as error:
        sys.exit(f"train_world: {error}")
    print("\n".join(str(given.out / name) for name in names))


if __name__ == "__main__":
    main()
