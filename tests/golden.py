"""Golden results: what a tree computes, recorded item by item, and two recordings compared.

    python -m tests.golden record FOLDER [--only NAME,...] [--all] [--jobs 2]
    python -m tests.golden compare A B
    python -m tests.golden list

This is the net under a refactoring that must not change results:

1. Record the tree as it is: ``record before``.
2. Refactor. Names of verbs, options and keys of settings stand in ``golden.yaml``, those of
   functions in `probe_python` and `numerics`; follow each renaming there.
3. Record again, ``record after``, and ``compare before after``. What differs is either a bug or a
   name in JSON. List names in `RENAMED_ITEMS`, `RENAMED_KEYS` and `RENAMED_VALUES`, better
   messages in `ALLOWED_WORDING`, and other forms in `REPLACED`: nothing else may differ.
4. Once that is merged, empty those five tables: the next refactoring starts from a new recording.

`record` runs the tree that this file lies in: every item runs ``python -m lens`` (or this module)
in a process of its own with one thread and no network, in a temporary folder with relative paths,
and writes FOLDER/ITEM.json; items found there are skipped. Everything is compared exactly: tensors
by the SHA-256 of their bytes, numbers by their printed digits. So both recordings must come from
one machine (the same processor, torch and NumPy); `compare` prints a note where they do not. It
exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import html
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any

import yaml

TREE = Path(__file__).resolve().parents[1]

# === differences that are allowed =================================================================

RENAMED_ITEMS: dict[str, str] = {
    "delta": "diff",
    "train-pinned": "train-lens+kl",
    "train-corrected": "train-lens",
    "train-lens-v1": "train-lens-paper",
}
"""Old item to new item."""

RENAMED_KEYS: dict[str, str] = {
    "stats.pool": "pooling.pool",
    "stats.StreamingMoments": "pooling.StreamingMoments",
    "clip": "max_grad_norm",
    "micro_batch": "micro_batch_size",
    "warmup": "warmup_ratio",
    "settings/replay": "replay_share",
    "settings/train": "modules",
    "training/replay": "replay_share",
    "training/train": "modules",
    "trained/train": "modules",
    "setting/train": "modules",
    "base/train": "modules",
}
"""Old key to new key, applied to the first recording; ``parent/old`` for one below ``parent``."""

RENAMED_VALUES: dict[str, dict[str, str]] = {
    "system": {"lens-v1": "lens-paper"},
    "name": {"lens-v1": "lens-paper"},
}
"""Key to the names that are its values, old to new, applied to the first recording."""

ALLOWED_WORDING: dict[str, str] = {
    # options and arguments have new names
    r"^train='": "modules='",
    r"--micro-batch,": "--micro-batch-size,",
    r"lens.probe\(…, keep=DIR\)": "lens.probe(…, keep_states=DIR)",
}
"""Part of a message, as a regular expression, to what now stands there."""

REPLACED: dict[str, str] = {
    # readings: measured by docs/studies/probe_variants now, no longer by an inspection
    "inspection.json/readings": "a study of its own",
    "json/readings": "the same",
    "missing/readings": "the same",
    "inspect-states/files/report.html": "the page without that section",
    "inspect-text": "the study's item",
    "twins/subspace.fit": "gone: fits in torch had no caller",
    "maec-run/json/stages": "objects, which were printed as text",
    ".lock": "of a work folder, which took the place of stages.json",
    "stages.jsonl": "the same",
    "workdir.json": "the same",
    "base/dora": "of a setting without adapters; part of lora",
    "base/lora_alpha": "the same",
    "base/losses": "the name of a preset, which is recorded as its settings",
    "ablate/files/runs.jsonl": "settings that are equal run once, however they are written",
}
"""Key to the reason why it is in one recording only, or has another form; it is not compared."""

# === what is not recorded =========================================================================

DROPPED: dict[str, str] = {
    # time
    "seconds": "duration",
    "seconds_estimated": "duration",
    "rows_per_second": "duration",
    "modified_ns": "time of a file",
    # machine and versions
    "versions": "versions of packages",
    "package_version": "version of lens",
    "transformers_version": "version of a package",
    "reproduce.json/lens": "version of lens",
    "made_by/lens": "version of lens",
    "about/lens": "version of lens",
    # hashes that take in names of keys, versions or times; what they are of is recorded itself
    "about/sha256": "of a space: its record, with version and names of keys",
    "space.json/sha256": "the same",
    "space/sha256": "the same",
    "json/sha256": "the same",
    "about/space": "the same",
    "runs.jsonl/key": "of a run of a sweep: its settings, with version and names of keys",
    "stages.json": "of settings and files; what a stage writes is recorded itself",
    "keys/sha256": "of a file with the times of its sources",
    "ability.safetensors/header_sha256": "the same",
    "ability.safetensors/sample_xxh64": "the same",
    "ability.safetensors/bytes": "size of a file that holds names of keys",
    # how it was called: options are what a refactoring renames
    "command": "command line",
    "README.md": "prose that names keys and versions; all that it says is in reproduce.json",
}
"""Key or name of a file, or ``parent/key``, to the reason why it is not recorded, anywhere."""

TEXT_RULES = {
    r"\blens \d+\.\d+\.\d+\b": "lens VERSION",
    r"^\d+\.\d+\.\d+$": "VERSION",
    r"(\| \d+ × \d+ \|) [\d.]+ \|$": r"\1 SECONDS |",  # last column of a sweep's table
    r"\bseconds=[\d.e-]+": "seconds=SECONDS",  # results that JSON holds as text
}
"""Replaced in every string: what depends on version or machine."""

# === commands =====================================================================================

COMMANDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
OTHERS = COMMANDS["others"]
NO_ADAPTER = ("passthrough",)  # no base, so no delta; what is recorded is the refusal
WORLD, SPACE, STATES, ABILITY = "world", "space.safetensors", "states", "ability.safetensors"
CHAT, TRAIN = f"{WORLD}/chat", f"{WORLD}/prompts/train.jsonl"


def whole(command: str) -> str:
    """A command with what its ``$NAME`` stand for."""
    while "$" in command:
        command = Template(command).substitute(COMMANDS["short"])
    return command


# === what is recorded of files and values =========================================================


def digest(data: bytes) -> str:
    """Enough of a SHA-256 to tell bytes apart."""
    return hashlib.sha256(data).hexdigest()[:20]


def tensors(path: Path) -> dict[str, Any]:
    """Hash of every tensor of a safetensors file, and its metadata, JSON in it as values."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), memoryview(raw)[8 + length :]
    found: dict[str, Any] = {"metadata": {}, "tensors": {}}
    for key, text in header.pop("__metadata__", {}).items():
        try:
            found["metadata"][key] = parsed(text)
        except ValueError:
            found["metadata"][key] = text
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        shape = "x".join(map(str, entry["shape"]))
        found["tensors"][name] = f"{entry['dtype']} {shape} {digest(bytes(data[start:stop]))}"
    return found


def parsed(text: str) -> Any:
    """JSON, with the digits of its fractions as printed."""
    return json.loads(text, parse_float=str)


def contents(path: Path) -> Any:
    """What is recorded of a file, or of a folder file by file."""
    if path.is_dir():
        return {inner.name: contents(inner) for inner in sorted(path.iterdir())}
    if path.suffix == ".safetensors":
        return tensors(path)
    raw = path.read_bytes()
    if path.suffix == ".json" and path.name != "tokenizer.json":  # large: its hash will do
        return parsed(raw.decode())
    if path.suffix == ".jsonl":
        return [parsed(line) for line in raw.decode().splitlines()]
    if path.suffix == ".html":
        return visible(raw.decode())
    if path.suffix == ".yaml":
        return parsed(json.dumps(yaml.safe_load(raw)))
    if path.suffix in (".md", ".txt", ".jinja"):
        return raw.decode().splitlines()
    return digest(raw)


def visible(page: str) -> list[str]:
    """Text of a page, line by line, and the hash of each of its drawings; no hashes it shows."""
    page = re.sub(r"<(style|script|head)\b.*?</\1>", "", page, flags=re.S)
    page = re.sub(
        r"<svg\b.*?</svg>", lambda m: f"\n[drawing {digest(m[0].encode())}]\n", page, flags=re.S
    )
    lines = (html.unescape(line).strip() for line in re.sub(r"<[^>]*>", "\n", page).splitlines())
    return [re.sub(r"^[0-9a-f]{64}$", "HASH", line) for line in lines if line]


def matches(pattern: str, path: tuple[str, ...]) -> bool:
    """Whether a key, or ``parent/key``, is the end of a path."""
    parts = tuple(pattern.split("/"))
    return path[-len(parts) :] == parts


def cleaned(
    value: Any,
    places: Mapping[str, str],
    drop: Mapping[str, str] = DROPPED,
    path: tuple[str, ...] = (),
) -> Any:
    """Leave out what is dropped, and replace absolute places and versions in strings."""
    if isinstance(value, dict):
        return {
            spoken(key, places): cleaned(inner, places, drop, (*path, key))
            for key, inner in value.items()
            if not any(matches(pattern, (*path, key)) for pattern in drop)
        }
    if isinstance(value, list):
        return [cleaned(inner, places, drop, path) for inner in value]
    return spoken(value, places) if isinstance(value, str) else value


def spoken(text: str, places: Mapping[str, str]) -> str:
    """Text without what depends on place or version."""
    for place, name in places.items():
        text = text.replace(place, name)
    for pattern, name in TEXT_RULES.items():
        text = re.sub(pattern, name, text)
    return text


# === running ======================================================================================


class Failed(Exception):
    """A command ended in another way than an item expects."""


class Runner:
    """Runs commands in a scratch folder, and says what of their results is recorded."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.places = {
            os.path.realpath(scratch): "SCRATCH",
            str(scratch): "SCRATCH",
            str(TREE): "TREE",
        }
        # One thread everywhere, for equal bits; no network; the tree's own code.
        threads = ("OMP", "OPENBLAS", "MKL")
        self.environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in threads}
        self.environment |= {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(TREE),
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONWARNINGS": "ignore",
        }

    def process(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Any:
        """Run Python in the scratch folder."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.scratch,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in codes:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
            raise Failed(f"exit code {done.returncode} of {shlex.join(arguments)}\n{said}")
        return done

    def lens(self, command: str, codes: tuple[int, ...] = (0,)) -> Any:
        """Run ``lens``."""
        return self.process("-m", "lens", *shlex.split(whole(command)), codes=codes)

    def told(self, command: str, codes: tuple[int, ...] = (0, 2)) -> dict[str, Any]:
        """Run ``lens`` and return exit code and JSON, or the text it printed, or its error."""
        done = self.lens(command, codes)
        found: dict[str, Any] = {"code": done.returncode}
        try:
            return found | {"json": parsed(done.stdout)}
        except ValueError:
            printed = done.stdout.strip() or done.stderr.strip()
            return found | {"printed": printed.splitlines()}

    def made(self, name: str) -> Any:
        """What is recorded of a file or folder that a command made."""
        return contents(self.scratch / name)

    def write(self, name: str, content: Any) -> None:
        """Write an input: lines of text or of JSON, or one JSON value, which is YAML too."""
        jsonl = name.endswith(".jsonl")
        lines = content if isinstance(content, list) else [json.dumps(content, indent=1)]
        lines = [json.dumps(line, ensure_ascii=False) if jsonl else line for line in lines]
        (self.scratch / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def rows(self, name: str, count: int) -> list[Any]:
        """First rows of a JSONL file."""
        lines = (self.scratch / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[:count]]

    def prepare(self) -> None:
        """Make what several items read."""
        for command in COMMANDS["shared"].values():
            self.lens(command)
        for name, content in COMMANDS["inputs"].items():
            self.write(name, content)
        self.write("held-out.jsonl", self.rows(f"{WORLD}/prompts/validation.jsonl", 16))
        texts = self.rows(f"{WORLD}/text.jsonl", 80)
        self.write("pivot.txt", [row["eng_Latn"] for row in texts])
        self.write("other.txt", [row["swh_Latn"] for row in texts])
        asked, said = self.rows(TRAIN, 60), self.rows(f"{WORLD}/answers/train.jsonl", 60)
        pairs = [(q["eng_Latn"], a["eng_Latn"]) for q, a in zip(asked, said, strict=True)]
        self.write("rows.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in pairs])
        bad = [{code: row[code] for code in ("eng_Latn", "spa_Latn", "swh_Latn")} for row in texts]
        bad = bad[:30]
        bad[3]["spa_Latn"] = ""  # empty, repeated, exchanged, in the wrong language and script
        bad[5] = dict(bad[4])
        bad[7], bad[8] = bad[7] | {"swh_Latn": bad[8]["swh_Latn"]}, bad[8]
        for row in bad[10:16]:
            row["spa_Latn"] = row["eng_Latn"]
        bad[20]["swh_Latn"] = "Живёт Ana в лесу."
        self.write("bad.jsonl", bad)


# === items ========================================================================================

Item = Callable[[Runner], Any]
LONG = ("demo-full",)
"""Only run when named, or with ``--all``."""


def command_item(name: str, command: str) -> Item:
    """A command with JSON and a new file or folder ``--out``, both recorded."""
    words = whole(command).split()
    out = f"out-{name}" + (".safetensors" if words[0] in ("probe", "extract") else "")
    if "--out" in words:
        out = words[words.index("--out") + 1]
    else:
        command += f" --out {out}"
    return lambda runner: runner.told(f"{command} --json", codes=(0,)) | {"files": runner.made(out)}


def printed_item(name: str, commands: Mapping[str, str]) -> Item:
    """What several commands print."""

    def run(runner: Runner) -> Any:
        found = {label: runner.told(command) for label, command in commands.items()}
        for told in found.values():
            if name.startswith("plan-") and "json" in told:
                told["json"] = {"problems": told["json"]["problems"]}
        return found

    return run


def merge_item(method: str, options: str) -> Item:
    """A merge by one method as a checkpoint, and as an adapter."""

    def run(runner: Runner) -> Any:
        out = f"out-merge-{method}"
        command = f"{OTHERS['merge']} {method} {options} --out {out}"
        merged = runner.told(command, codes=(0,)) | {"files": runner.made(out)}
        codes = (2,) if method in NO_ADAPTER else (0,)
        adapter = runner.told(f"{command}-lora {OTHERS['adapter']}", codes=codes)
        if method not in NO_ADAPTER:
            adapter["files"] = runner.made(f"{out}-lora")
        return {"whole": merged, "adapter": adapter}

    return run


def demo(limit: int) -> Item:
    """The demo, both acts."""

    def run(runner: Runner) -> Any:
        out, names = f"out-demo-{limit}", ("results.json", "record.json")
        runner.lens(f"{OTHERS['demo']} {limit} --out {out}")
        files = (*names, *(f"merging/{name}" for name in names))
        return {name: runner.made(f"{out}/{name}") for name in files}

    return run


def shared(runner: Runner) -> Any:
    """The world's files, and the space and the ability that other items read."""
    twin = str(Path(SPACE).with_suffix(".json"))
    return {name: runner.made(name) for name in (WORLD, SPACE, twin, STATES, ABILITY)}


def verified(runner: Runner) -> Any:
    """A merge in the dtype of its base, computed again."""
    runner.lens(OTHERS["verified"])
    files = runner.made("merged")
    return {"files": files, **{name: runner.told(OTHERS[name]) for name in ("sample", "all")}}


def weight_diff(runner: Runner) -> Any:
    """The differences of weights, as JSON and as a page."""
    found = {}
    for form in ("json", "html"):
        told = runner.told(f"{OTHERS['diff']} atlas.{form}", codes=(0,))
        found[form] = told | {"file": runner.made(f"atlas.{form}")}
    return found


def space_verbs(runner: Runner) -> Any:
    """A space without a language; a space shown."""
    dropped = runner.told(OTHERS["drop"], codes=(0,))
    shown = runner.told(OTHERS["show"])
    return {"drop": dropped, "file": runner.made("dropped.safetensors"), "show": shown}


def in_python(name: str) -> Item:
    """An item that calls functions: `CHILDREN`, in a process of its own."""

    def run(runner: Runner) -> Any:
        runner.process("-m", "tests.golden", "child", name)
        return runner.made(f"child-{name}.json")

    return run


# === items in Python: they run in a process of their own ==========================================


def plain(value: Any) -> Any:
    """A result as JSON: arrays as hashes, fields of dataclasses by name, floats as printed."""
    import numpy as np

    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        shape = "x".join(map(str, value.shape))
        return f"{value.dtype} {shape} {digest(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return repr(value) if isinstance(value, float) else value


def probe_python() -> Any:
    """The space of the chat model, by functions."""
    import lens

    model, tokenizer = lens.models.load(CHAT)
    rows = [json.loads(line) for line in Path(TRAIN).read_text("utf-8").splitlines()[:30]]
    prompts = {code: [row[code] for row in rows] for code in rows[0]}
    space = lens.probe(
        model, tokenizer, prompts, pivot="eng_Latn", role="user", pooling="last", sites="-2:"
    )
    space.save("python.safetensors")
    return contents(Path("python.safetensors"))


def numerics() -> Any:
    """Functions of the numerics on random arrays, in float32 and other dtypes, and their twins."""
    import numpy as np
    import torch

    from lens import losses, metrics, neurons, pooling, resample, subspace, torch_ops, weights

    rng = np.random.default_rng(0)
    rows, tokens, width, langs = 37, 11, 48, 5

    def states(*shape: int, dtype: str = "float32") -> Any:
        return rng.normal(size=shape).astype(dtype)

    means, h, h0 = states(langs, width, dtype="float64"), states(rows, width), states(rows, width)
    many, many0 = states(rows, tokens, width), states(rows, tokens, width)
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, (rows, 1))).astype(np.int64)
    fit = subspace.fit(means, rank="full")
    other = subspace.fit(states(langs, width, dtype="float64"), rank=2)
    target = rng.normal(size=fit.basis.shape[1])
    shares = rng.uniform(0.1, 1, rows)
    half, half0 = h.astype("float16"), h0.astype("float16")
    pooled = states(langs, rows, width) + 2 * means[:, None].astype("float32")
    moments = pooling.StreamingMoments(width)
    for start in range(0, rows, 10):
        moments.update(h[start : start + 10], start)
    counts = neurons.Counts(width)
    counts.update(many, mask)
    gram = resample.gram(pooled)
    named = {str(code): block for code, block in enumerate(pooled)}
    opened = rng.integers(0, 50, (langs, 3, width))
    a, b = {"x": states(30, 20), "y": states(50)}, {"x": states(30, 20), "y": states(50)}
    wide = states(4, 70_000)
    bits = (wide.view("uint32") >> 16).astype("uint16")  # bfloat16
    results = {
        "pooling.pool": [
            pooling.pool(many, mask, mode=mode) for mode in ("last", "mean", "weighted")
        ],
        "pooling.StreamingMoments": moments.to_arrays(),
        "subspace.fit": [
            fit,
            other,
            subspace.fit(means, agnostic="complement", noise=np.full(langs, 3)),
        ],
        "subspace.fit_batch": subspace.fit_batch(
            np.stack([means, 2 * means]), noise=np.ones((2, langs))
        ),
        "subspace.principal_angles": subspace.principal_angles(fit.basis, other.basis),
        "subspace.thin_svd": subspace.thin_svd(means, rank=3),
        "subspace.thin_qr": subspace.thin_qr(means.T.copy()),
        "subspace.project": [subspace.project(x, fit.basis, strength=0.7) for x in (h, half, many)],
        "losses.separate": [
            losses.separate(x, x0, fit.basis, target, weights=w)
            for x, x0, w in ((h, h0, None), (h, h0, shares), (half, half0, None))
        ],
        "losses.align": [
            losses.align(h, h0, direction=fit.agnostic, two_sided=True),
            losses.align(h, h0, basis=fit.basis, weights=shares),
        ],
        "losses.retain": [
            losses.retain(many, many0, mask, form=form) for form in ("token", "token_mean")
        ],
        "metrics.mexa": metrics.mexa(h, h + 0.5 * h0, permutations=50, seed=1),
        "metrics.mexa_layers": metrics.mexa_layers(pooled, pooled + 1, permutations=20),
        "metrics.separability": metrics.separability(named, folds=4),
        "neurons.lape": neurons.lape(opened, np.full(langs, 60), quantile=0.8, share=0.1),
        "neurons.Counts": counts.result(),
        "weights.delta": [
            weights.delta(h, h0),
            weights.delta(bits[0], bits[1], dtype="bfloat16"),
        ],
        "weights.sum_of_squares": weights.sum_of_squares(wide[0], wide[1]),
        "weights.compare": weights.compare((wide[0], wide[1]), (wide[2], wide[3])),
        "weights.histogram": weights.histogram(wide[0], wide[1]),
        "weights.importance": [weights.importance(h, h0, unit=unit) for unit in ("row", "column")],
        "weights.topk_masks": [
            weights.topk_masks(a, b, share=0.3),
            weights.topk_masks(a, b, k=7, per_tensor=True),
            weights.topk_masks(a, b, share=0.2, unit="row"),
        ],
        "weights.topk_units": weights.topk_units({"x": np.abs(a["x"][0])}, k=4),
        "weights.combine": [
            weights.combine([wide[0], wide[1], wide[2]], np.array([0.5, 0.3, -0.1])),
            weights.combine([wide[0], wide[1]], np.ones(2), out_dtype="bfloat16"),
        ],
        "weights.count_nonfinite": weights.count_nonfinite(np.array([1, np.nan], "f4")),
        "resample.gram": gram,
        "resample.bootstrap": resample.bootstrap(gram, rank=2, n_resamples=60, seed=1),
        "resample.choose_rank": resample.choose_rank(
            gram, n_resamples=40, n_permutations=40, seed=2
        ),
        "resample.permutation_spectrum": resample.permutation_spectrum(
            gram, n_permutations=40, joint=False, seed=3
        ),
        "resample.stability_curve": resample.stability_curve(
            gram, (5, 15), rank=2, n_resamples=40, seed=4
        ),
    }
    t = torch.from_numpy
    basis, agnostic = t(fit.basis), t(fit.agnostic)
    results["twins"] = {
        "losses.separate": torch_ops.separate(t(h), t(h0), basis, t(target)),
        "losses.align": torch_ops.align(t(h), t(h0), direction=agnostic, two_sided=True),
        "losses.retain": torch_ops.retain(t(many), t(many0), t(mask), form="token"),
        "pooling.pool": torch_ops.pool(t(many), t(mask), mode="weighted"),
    }
    return plain(results)


CHILDREN: dict[str, Callable[[], Any]] = {"probe-python": probe_python, "numerics": numerics}
ITEMS: dict[str, Item] = {  # the longest first, so that nothing waits for it at the end
    "demo": demo(60),
    "demo-full": demo(500),
    "shared": shared,
    **{name: command_item(name, command) for name, command in COMMANDS["commands"].items()},
    **{f"merge-{name}": merge_item(name, options) for name, options in COMMANDS["merges"].items()},
    "verify": verified,
    "diff": weight_diff,
    "space-verbs": space_verbs,
    **{name: printed_item(name, commands) for name, commands in COMMANDS["printed"].items()},
    **{name: in_python(name) for name in CHILDREN},
}

# === record and compare ===========================================================================


def machine() -> str:
    """What decides the last bits: processor and versions."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        said = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = said[1] if said else cpu
    lines = [f"processor {cpu}", f"python {platform.python_version()}"]
    for package in ("numpy", "torch", "transformers", "peft", "tokenizers", "safetensors"):
        with suppress(PackageNotFoundError):
            lines.append(f"{package} {version(package)}")
    return "\n".join(lines) + "\n"


def record(folder: Path, names: list[str], jobs: int) -> int:
    """Run items that have no file in the folder yet; return how many failed."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [name for name in names if not (folder / f"{name}.json").is_file()]
    if skipped := len(names) - len(todo):
        print(f"{skipped} items are there already")
    if not todo:
        return 0
    (folder / "machine.txt").write_text(machine(), encoding="utf-8")
    began, failed, lock = time.perf_counter(), 0, threading.Lock()
    scratch = Path(tempfile.mkdtemp(prefix="golden-"))
    runner = Runner(scratch)

    def one(name: str) -> None:
        nonlocal failed
        start = time.perf_counter()
        try:
            value = cleaned({name: ITEMS[name](runner)}, runner.places)[name]
            text, state = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True), "done"
            part = folder / f"{name}.json.part"
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(folder / f"{name}.json")
        except Failed as error:
            failed, state = failed + 1, f"FAILED: {error}"
        except Exception:
            failed, state = failed + 1, f"FAILED:\n{traceback.format_exc()}"
        with lock:
            print(f"{name:<26} {time.perf_counter() - start:6.1f} s  {state}", flush=True)

    try:
        where = runner.process("-c", "import lens; print(lens.__file__)").stdout.strip()
        if TREE not in Path(where).resolve().parents:
            raise SystemExit(f"lens is imported from {where}, expected {TREE}")
        runner.prepare()
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, todo))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{len(todo) - failed} of {len(todo)} items in {time.perf_counter() - began:.0f} s")
    return failed


def renamed(value: Any, path: tuple[str, ...]) -> Any:
    """A value of the first recording with the new names and words."""
    if isinstance(value, list):
        return [renamed(inner, path) for inner in value]
    if isinstance(value, dict):
        return {
            fitting(RENAMED_KEYS, (*path, key), key): renamed(inner, (*path, key))
            for key, inner in value.items()
        }
    if isinstance(value, str):
        item = path[0]
        value = value.replace(f"out-{item}", f"out-{RENAMED_ITEMS.get(item, item)}")
        value = fitting(RENAMED_VALUES, path, {}).get(value, value)
        for old, new in ALLOWED_WORDING.items():
            value = re.sub(old, new, value)
    return value


def fitting(table: Mapping[str, Any], path: tuple[str, ...], default: Any) -> Any:
    """The entry of a table whose pattern fits a path best."""
    patterns = [pattern for pattern in table if matches(pattern, path)]
    return table[max(patterns, key=len)] if patterns else default


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Every place where two values differ, in words."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            inner = f"{path} / {key}" if path else key
            if key not in b:
                yield f"{inner}: only in the first: {short(a[key])}"
            elif key not in a:
                yield f"{inner}: only in the second: {short(b[key])}"
            else:
                yield from differences(a[key], b[key], inner)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{path}: {len(a)} entries, then {len(b)}"
        for number, (one, other) in enumerate(zip(a, b, strict=False)):
            yield from differences(one, other, f"{path}[{number}]")
    elif a != b or type(a) is not type(b):
        start = 0
        if isinstance(a, str) and isinstance(b, str):
            start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
        yield f"{path}: {short(a, start)} -> {short(b, start)}{apart(a, b)}"


def short(value: Any, start: int = 0) -> str:
    """A value as text, cut; of a string only what comes after ``start``."""
    if start > 40:
        value = f"...{value[start - 40 :]}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


def apart(a: Any, b: Any) -> str:
    """How far two numbers are apart."""
    try:
        x, y = float(a), float(b)
    except (TypeError, ValueError):
        return ""
    return f"  (relative {abs(x - y) / max(abs(x), abs(y), 1e-300):.1e})"


def compare(first: Path, second: Path, most: int) -> int:
    """Print what differs between two recordings; return how many items do."""
    machines = [folder / "machine.txt" for folder in (first, second)]
    if len({path.read_text(encoding="utf-8") for path in machines if path.is_file()}) > 1:
        print("note: recorded on different machines or versions; last digits may differ")
    before, after = (
        {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
        for folder in (first, second)
    )
    before = {RENAMED_ITEMS.get(name, name): renamed(before[name], (name,)) for name in before}
    before, after = (cleaned(items, {}, drop=REPLACED) for items in (before, after))
    count = 0
    for name in sorted(before.keys() | after.keys()):
        both = name in before and name in after
        found = list(differences(before[name], after[name])) if both else ["not in both recordings"]
        print(f"{'different' if found else 'equal':<10} {name}")
        for line in found[:most]:
            print(f"             {line}")
        if len(found) > most:
            print(f"             and {len(found) - most} more (--most {len(found)})")
        count += bool(found)
    total = len(before.keys() | after.keys())
    print(f"{total - count} of {total} items are equal")
    return count


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("record", help="run every item and write its result")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--only", help="items, with commas between")
    verb.add_argument("--all", action="store_true", help=f"{', '.join(LONG)} too")
    verb.add_argument("--jobs", type=int, default=2, help="items at the same time")
    verb = verbs.add_parser("compare", help="compare two recordings")
    verb.add_argument("first", type=Path)
    verb.add_argument("second", type=Path)
    verb.add_argument("--most", type=int, default=12, help="differences shown per item")
    verbs.add_parser("list", help="name the items")
    verbs.add_parser("child").add_argument("name", choices=CHILDREN)
    given = parser.parse_args()
    if given.verb == "record":
        usual = [name for name in ITEMS if given.all or name not in LONG]
        names = given.only.split(",") if given.only else usual
        if unknown := [name for name in names if name not in ITEMS]:
            raise SystemExit(f"no item {', '.join(unknown)}; there are {', '.join(ITEMS)}")
        sys.exit(1 if record(given.folder, names, given.jobs) else 0)
    if given.verb == "compare":
        sys.exit(1 if compare(given.first, given.second, given.most) else 0)
    if given.verb == "list":
        print("\n".join(ITEMS))
        return
    text = json.dumps(CHILDREN[given.name](), indent=1)
    Path(f"child-{given.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
