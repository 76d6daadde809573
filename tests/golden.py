"""Golden results: what a tree computes, recorded item by item, and two recordings compared.

    python -m tests.golden record FOLDER [--only NAME,...] [--all] [--jobs 2]
    python -m tests.golden compare A B
    python -m tests.golden list

`record` runs the tree that this file lies in: every item calls ``python -m lens`` (or, for a few,
this module) in processes of their own, with one thread and no network, in a temporary folder with
relative paths, and writes FOLDER/ITEM.json; items found there are skipped. `compare` prints what
differs and exits with 1 if anything does. Everything is compared exactly: tensors by the SHA-256
of their bytes, numbers by their printed digits. So both recordings must come from one machine (the
same processor, torch and NumPy); a note is printed where they do not.

This is a net for refactoring. All names of the package (verbs, options, keys, modules) stand in
the first section, so that a renaming is followed there and nowhere else; RENAMED_KEYS says which
keys of JSON (names of files among them) have a new name, and is the only difference allowed.
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
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

TREE = Path(__file__).resolve().parents[1]

# === names of the package: the only section that a renaming touches ===============================

RENAMED_KEYS: dict[str, str] = {}
"""Old key to new key, applied to the first recording; ``parent/old`` for a key below ``parent``."""

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

HASHED = ("tokenizer.json",)
"""Large JSON files of which only the hash is recorded."""

TEXT_RULES = {
    r"\blens \d+\.\d+\.\d+\b": "lens VERSION",
    r"^\d+\.\d+\.\d+$": "VERSION",
    r"(\| \d+ × \d+ \|) [\d.]+ \|$": r"\1 SECONDS |",  # last column of a sweep's table
    r"\bseconds=[\d.e-]+": "seconds=SECONDS",  # results that JSON holds as text
}
"""Replaced in every string: what depends on version or machine."""

WORLD, SPACE, STATES = "world", "space.safetensors", "states"
BASE, CHAT, MIXED = f"{WORLD}/base", f"{WORLD}/chat", f"{WORLD}/mixed"
TRAIN, VALIDATION, TEST = (
    f"{WORLD}/prompts/{split}.jsonl" for split in ("train", "validation", "test")
)
TEXT, NAMES, ABILITY = f"{WORLD}/text.jsonl", f"{WORLD}/names.txt", "ability.safetensors"
PIVOT, OTHERS = "eng_Latn", ("spa_Latn", "swh_Latn")
PROMPT = "¿Dónde vive Ana?"

# Shared inputs, made once per recording, in this order.
EXPORT = f"world export --out {WORLD}"
PROBE_TEXT = f"--data {TRAIN} --limit 60 --pivot {PIVOT} --role text --pooling last --no-check"
PROBE = f"probe --model {CHAT} {PROBE_TEXT} --keep-states {STATES} --out {SPACE}"
EXTRACT = (
    f"extract --base-model {BASE} --trained {CHAT} --pivot-model {MIXED} --param k1=0.2 "
    f"--param alpha=0.8 --param beta=0.2 --out {ABILITY} --json"
)
SHARED = (EXPORT, PROBE, EXTRACT)

PROBES = {
    "probe-user": f"probe --model {CHAT} --data {TRAIN} --limit 40 --role user --pooling mean",
    "probe-assistant": f"probe --model {CHAT} --data {WORLD}/answers/train.jsonl --limit 20 "
    f"--role assistant --prompts {TRAIN} --pooling weighted --sites block.3,final",
    "probe-layers": f"probe --model {CHAT} {PROBE_TEXT} --layer-by-layer --max-tokens 9 "
    "--keep-states kept --choose-ranks",
}

_TRAIN = f"train --model {CHAT} --space {SPACE} --prompts {TRAIN} --limit 40 --steps 20"
_ANSWERS = f"--texts {TEXT} --translator {BASE}"
LOSSES = {  # every preset, and a file with every kind of term; the rest are options of the losses
    "pinned": "--strength 2",
    "corrected": "--langs spa_Latn,swh_Latn --strength spa_Latn=1.5,swh_Latn=2.5",
    "lens-v1": "",
    "self-translation": f"--limit 24 {_ANSWERS}",
    "question-translation": "--limit 24",
    "terms.yaml": f"--limit 24 --answers {WORLD}/answers/train.jsonl",
}
TERMS = {
    "rank": 3,
    "terms": [
        {"kind": "separate", "site": "block.-2", "strength": 0.5, "positions": 2},
        {"kind": "separate", "target": "shift", "positions": "all", "schedule": [1, 0.5]},
        {"kind": "align", "agnostic": "complement", "languages": {"spa_Latn": 0.5}},
        {"kind": "retain", "form": "token_mean"},
        {"kind": "kl", "weight": 0.1, "schedule": [0, 1], "positions": "last"},
        {"kind": "lm", "weight": 0.1, "rows": "answers"},
        {"kind": "norm", "positions": "mean"},
    ],
}
TUNE = {
    "validation": {
        "prompts": VALIDATION, "references": f"{WORLD}/references/validation.jsonl",
        "neutral": NAMES, "limit": 4, "max_new_tokens": 16,
    },
    "strength": {"low": 0.5, "high": 4.0}, "search": {"layers": ["-1:", "-2:"]},
    "trials": 2, "max_drift": 5.0,
}  # fmt: skip
TRAININGS = {
    **{f"train-{name}": f"{_TRAIN} --losses {name} {more}" for name, more in LOSSES.items()},
    "train-lora": f"{_TRAIN} --lora 4",
    "train-dora": f"{_TRAIN} --lora 4 --lora-alpha 4 --dora --train attention",
    "train-micro-batch": f"{_TRAIN} --micro-batch 3 --clip 0.5 --warmup 0.2 --weight-decay 0.1",
    "train-attention": f"{_TRAIN} --train attention --layers 2:4,-2:",
    "train-mlp": f"{_TRAIN} --train mlp --layers -1: --keep-in-memory",
    "train-norm": f"{_TRAIN} --train norm --seed 3",
    "train-several": f"{_TRAIN} --train attention,mlp.down_proj --lr 0.003 --batch-size 4 "
    "--dtype float32",
    "train-validation": f"{_TRAIN} --validation held-out.jsonl --validate-every 5 "
    "--gradient-checkpointing --cache prefix",
    "train-tune": f"{_TRAIN} --steps 10 --tune tune.yaml",
}

_MERGE = "merge --out-dtype float32 --json --method"
_BASE = f"--base-model {BASE}"
_BOTH = f"{_BASE} --model {CHAT}=0.7 --model {MIXED}=0.5"
_MAEC = f"{_BASE} --param k1=0.2 --param k2=0.7 --param gamma=1.6 --language {MIXED}=0.7"
LORA = "--lora-rank 4"
MERGES = {  # every method
    "maec": f"{_MAEC} --trained {CHAT} --pivot-model {MIXED} --param beta=0.25 --param unit=row",
    "linear": f"{_BASE} --model {BASE}=0.2 --model {CHAT}=0.5 --model {MIXED}=0.4",
    "task_arithmetic": f"{_BOTH} --param lambda=0.9",
    "ties": f"{_BOTH} --param density=0.4",
    "dare_ties": f"{_BOTH} --param density=0.5 --seed 1",
    "dare_linear": f"{_BOTH} --param density=0.5 --seed 1",
    "della": f"{_BOTH} --param density=0.5 --param epsilon=0.1 --seed 1",
    "della_linear": f"{_BOTH} --param density=0.5 --param epsilon=0.1 --seed 1",
    "breadcrumbs": f"{_BOTH} --param density=0.6 --param gamma=0.02",
    "breadcrumbs_ties": f"{_BOTH} --param density=0.6 --param gamma=0.02",
    "slerp": f"{_BASE} --model {MIXED} --param t=0.4",
    "layer_swap": f"{_BASE} --model {MIXED} --param 'layers=\"0:2,-2:\"'",
    "passthrough": f"--model {CHAT} --param scale=0.9",
}
NO_LORA = ("passthrough",)  # no base, so no change; what is recorded is the refusal
SLICES = {
    "merge_method": "passthrough",
    "slices": [
        {"sources": [{"model": CHAT, "layer_range": [0, 5]}]},
        {"sources": [{"model": MIXED, "layer_range": [3, 8]}]},
    ],
}
MERGES_MORE = {
    "merge-extracted": f"merge --method maec {_MAEC} --extracted {ABILITY} --json "
    "--out-shard-size 1MB",
    "merge-slices": "merge --config slices.yaml --json",
    "merge-energy": f"{_MERGE} task_arithmetic {_BOTH} --lora-energy 0.5",
}
VERIFY = f"merge --method ties {_BOTH} --param density=0.4 --out merged", "verify merged --json"
VERIFY_ALL = "verify merged --all --json"
DELTA = f"delta {BASE} {CHAT} {MIXED} --json --out"
_UNITS = f"extract {_BASE} --trained {CHAT} --located {MIXED} --json"
EXTRACTS = {
    "extract-row": f"{_UNITS} --param k1=0.1 --param unit=row --param scope=tensor",
    "extract-column": f"{_UNITS} --param k1=0.1 --param unit=column",
}

RECIPE = {
    "base_model": MIXED, "training": {
        "steps": 8, "batch_size": 8, "learning_rate": 5e-4, "row_tokens": 64,
    },
    "ability": {
        "rows": "rows.jsonl", "locate": {"steps": 3}, "how": "mask", "replay": "pivot.txt",
        "training": {"replay": 0.25},
    },
    "pivot": {"text": "pivot.txt", "training": {"steps": 4}},
    "languages": [{"name": OTHERS[1], "text": "other.txt", "mu": 0.7}],
    "parameters": {"k1": 0.2, "beta": 0.25, "gamma": 1.6},
}  # fmt: skip
RECIPE_RUN = "maec run --config recipe.yaml --json --out"
MAEC_TRAININGS = {
    "maec-train": f"maec train --model {MIXED} --rows rows.jsonl --steps 8 --batch-size 8 "
    "--lr 5e-4 --train full --layers 2:6 --autocast --dtype float32",
    "maec-train-keys": f"maec train --model {MIXED} --text other.txt --row-tokens 64 --steps 8 "
    f"--batch-size 8 --micro-batch 3 --lr 5e-4 --dtype float32 --keys {ABILITY} --how revert",
}

INSPECT = f"inspect {SPACE} --json --resamples 40 --permutations 39 --out"
INSPECT_STATES = f"{INSPECT} inspection --states {STATES}"
INSPECT_TEXT = f"{INSPECT} read --model {CHAT} --data {TRAIN} --text-limit 20"
SPACE_VERBS = (f"space drop {SPACE} --langs tur_Latn --out", f"space show {SPACE} --json")
SWEEP = {
    "model": CHAT, "prompts": TRAIN, "answers": f"{WORLD}/answers/train.jsonl", "texts": TEXT,
    "translator": BASE, "languages": [PIVOT, *OTHERS],
    "validation": {
        "prompts": VALIDATION, "references": f"{WORLD}/references/validation.jsonl",
        "kinds": f"{WORLD}/kinds/validation.txt", "neutral": NAMES, "limit": 6,
        "max_new_tokens": 16,
    },
    "base": {"losses": {"preset": "pinned", "steps": 10}, "strength": 2, "prompts": 24},
    "grid": {"losses.rank": [1, "full"]},
    "runs": {
        "unchanged": {"method": "unchanged"}, "possible": {
            "method": "checkpoint", "checkpoint": MIXED,
        },
        "steered": {"method": "diffmean", "layers": "-1", "strength": 2},
        "chosen": {"strength": [1, 2]}, "random": {"method": "random"},
        "shuffled": {"method": "shuffled"}, "tuned": {"method": "finetune", "lora": 4},
        "translated": {"method": "translate-first"}, "self": {
            "losses": {"preset": "self-translation", "steps": 10}, "answers": "self",
        },
        "left out": {"without": [OTHERS[0]]},
    },
}  # fmt: skip
ABLATE = "ablate --sweep sweep.yaml --json --out"

_PLAN = f"train --model {CHAT} --prompts {TRAIN} --space {SPACE} --json"
PROBLEMS = "problems"
"""Key of a plan's list of problems: all that is recorded of it."""
PLANS = {
    "train": {
        "good": f"plan {_PLAN} --no-time --lora 4",
        "layers": f"plan {_PLAN} --quick --layers 7:30",
        "languages": f"plan {_PLAN} --quick --langs spa_Latn,deu_Latn",
        "part": f"plan {_PLAN} --quick --train gate",
        "limit": f"plan {_PLAN} --quick --max-memory 1MB",
        "batch": f"plan {_PLAN} --quick --limit 4 --batch-size 8 --lora 4096 --dtype float16",
        "missing": f"plan train --model nowhere --prompts {TRAIN} --quick --json",
    },
    "probe": {
        "good": f"plan probe --model {CHAT} --data {TRAIN} --no-time --json",
        "sites": f"plan probe --model {CHAT} --data {TRAIN} --quick --sites block.30 --json",
        "ranks": f"plan probe --model {CHAT} --data {TRAIN} --quick --choose-ranks --json",
        "there": f"plan probe --model {CHAT} --data {TEXT} --quick --out {SPACE} --json",
        "role": f"plan probe --model {CHAT} --data {TEXT} --quick --role assistant --json",
    },
    "merge": {
        "good": f"plan merge --method ties {_BOTH} --json",
        "base": f"plan merge --method ties --model {CHAT} --model {MIXED} --json",
        "parameter": f"plan merge --method ties {_BOTH} --param densty=2 --json",
        "missing": f"plan merge --method slerp {_BASE} --model nowhere --model {CHAT} --json",
        "pivot": f"plan merge --method maec {_BASE} --trained {CHAT} --param beta=1 --json",
    },
}
CHECKS = {
    "good": f"data check {TEXT} --model {CHAT} --max-tokens 12 --json",
    "bad": f"data check bad.jsonl --model {CHAT} --incomplete drop --notes --json",
    "strict": f"data check {TRAIN} --limit 50 --judge 20 --strict --json",
}
EVALS = {
    "eval": f"eval --model {MIXED} --prompts {TEST} --references {WORLD}/references/test.jsonl "
    "--limit 12 --max-new-tokens 24 --json",
    "eval-fidelity": f"eval --model {CHAT} --prompts {TEST} --langs en,es,sw --limit 8 "
    "--max-new-tokens 16 --no-template --identifier script --json",
}
_STEER = f"steer --model {CHAT} --space {SPACE} --max-new-tokens 16 --prompt '{PROMPT}'"
STEERS = {
    "add": f"{_STEER} --lang es --layers=-1 --strength 2 --apply prompt --compare",
    "project": f"{_STEER} --op project --layers 2:6 --rank 2 --strength 0.5",
    "generation": f"{_STEER} --lang sw --prompt 'Where does Ana live?' --apply generation --json",
}
DEMO = "demo --seed 0 --limit {limit} --out"
DEMO_FILES = ("results.json", "record.json", "merging/results.json", "merging/record.json")

LOAD, PROBE_FUNCTION = "lens.models:load", "lens:probe"
PROBE_ARGUMENTS = {"pivot": PIVOT, "role": "user", "pooling": "last", "sites": "-2:"}
SAVE = "save"  # method of a space

NUMERICS = {
    name: f"lens.{name.replace('.', ':')}"
    for name in (
        "stats.pool", "stats.StreamingMoments", "subspace.fit", "subspace.fit_batch",
        "subspace.principal_angles", "subspace.thin_svd", "subspace.thin_qr", "subspace.project",
        "losses.separate", "losses.align", "losses.retain", "metrics.mexa", "metrics.mexa_layers",
        "metrics.separability", "neurons.lape", "neurons.Counts", "weights.delta",
        "weights.sum_of_squares", "weights.compare", "weights.histogram", "weights.importance",
        "weights.topk_masks", "weights.topk_units", "weights.combine", "weights.count_nonfinite",
        "resample.gram", "resample.bootstrap", "resample.choose_rank",
        "resample.permutation_spectrum", "resample.stability_curve",
    )
}  # fmt: skip
NUMERICS |= {n: NUMERICS[n].replace("lens.stats", "lens.pooling") for n in NUMERICS if "stats." in n}
"""Function of the numerics, as `numerics` calls it, to where it is: ``module:name``."""

TWINS = {
    name: "lens.torch_ops:" + name.split(".")[1]
    for name in ("losses.separate", "losses.align", "losses.retain", "stats.pool")
}
"""The same in torch."""

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
    if path.name in HASHED:
        return digest(raw)
    if path.suffix == ".json":
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
    page = re.sub(r"<svg\b.*?</svg>", lambda m: f"\n[drawing {digest(m[0].encode())}]\n", page,
                  flags=re.S)  # fmt: skip
    lines = (html.unescape(line).strip() for line in re.sub(r"<[^>]*>", "\n", page).splitlines())
    return [re.sub(r"^[0-9a-f]{64}$", "HASH", line) for line in lines if line]


def matches(pattern: str, path: tuple[str, ...]) -> bool:
    """Whether a key, or ``parent/key``, is the end of a path."""
    parts = tuple(pattern.split("/"))
    return path[-len(parts) :] == parts


def cleaned(value: Any, places: Mapping[str, str], path: tuple[str, ...] = ()) -> Any:
    """Leave out what is dropped, and replace absolute places and versions in strings."""
    if isinstance(value, dict):
        return {
            spoken(key, places): cleaned(inner, places, (*path, key))
            for key, inner in value.items()
            if not any(matches(pattern, (*path, key)) for pattern in DROPPED)
        }
    if isinstance(value, list):
        return [cleaned(inner, places, path) for inner in value]
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
            os.path.realpath(scratch): "SCRATCH", str(scratch): "SCRATCH", str(TREE): "TREE",
        }  # fmt: skip
        # One thread everywhere, for equal bits; no network; the tree's own code.
        threads = ("OMP", "OPENBLAS", "MKL")
        self.environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in threads}
        self.environment |= {
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(TREE),
            "COLUMNS": "100", "NO_COLOR": "1", "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip

    def process(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Any:
        """Run Python in the scratch folder."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.scratch, env=self.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode not in codes:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
            raise Failed(f"exit code {done.returncode} of {shlex.join(arguments)}\n{said}")
        return done

    def lens(self, command: str, *more: str, codes: tuple[int, ...] = (0,)) -> Any:
        """Run ``lens``."""
        return self.process("-m", "lens", *shlex.split(command), *more, codes=codes)

    def told(self, command: str, *more: str, codes: tuple[int, ...] = (0, 2)) -> dict[str, Any]:
        """Run ``lens`` and return exit code and JSON, or the text it printed, or its error."""
        done = self.lens(command, *more, codes=codes)
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
        for command in SHARED:
            self.lens(command)
        self.write("terms.yaml", TERMS)
        self.write("tune.yaml", TUNE)
        self.write("slices.yaml", SLICES)
        self.write("recipe.yaml", RECIPE)
        self.write("sweep.yaml", SWEEP)
        self.write("held-out.jsonl", self.rows(VALIDATION, 16))
        texts = self.rows(TEXT, 80)
        self.write("pivot.txt", [row[PIVOT] for row in texts])
        self.write("other.txt", [row[OTHERS[1]] for row in texts])
        asked = self.rows(TRAIN, 60)
        said = self.rows(f"{WORLD}/answers/train.jsonl", 60)
        pairs = zip(asked, said, strict=True)
        self.write("rows.jsonl", [{"prompt": q[PIVOT], "answer": a[PIVOT]} for q, a in pairs])
        bad = [{code: row[code] for code in (PIVOT, *OTHERS)} for row in texts[:30]]
        bad[3][OTHERS[0]] = ""  # empty, repeated, exchanged, in the wrong language and script
        bad[5] = dict(bad[4])
        bad[7], bad[8] = bad[7] | {OTHERS[1]: bad[8][OTHERS[1]]}, bad[8]
        for row in bad[10:16]:
            row[OTHERS[0]] = row[PIVOT]
        bad[20][OTHERS[1]] = "Живёт Ana в лесу."
        self.write("bad.jsonl", bad)


# === items ========================================================================================

Item = Callable[[Runner], Any]
ITEMS: dict[str, Item] = {}
LONG = ("demo-full",)
"""Only run when named, or with ``--all``."""


def command_item(name: str, command: str) -> None:
    """Add an item: a command with JSON and a new file or folder ``--out``, both recorded."""
    out = f"out-{name}" + (".safetensors" if command.split()[0] in ("probe", "extract") else "")

    def run(runner: Runner) -> Any:
        return runner.told(command, "--out", out, codes=(0,)) | {"files": runner.made(out)}

    ITEMS[name] = run


def printed_items(name: str, commands: Mapping[str, str], key: str | None = None) -> None:
    """Add an item: what several commands print, or of their JSON one key only."""

    def run(runner: Runner) -> Any:
        found = {label: runner.told(command) for label, command in commands.items()}
        for told in found.values():
            if key is not None and "json" in told:
                told["json"] = {key: told["json"][key]}
        return found

    ITEMS[name] = run


def demo(limit: int) -> Item:
    """The demo, both acts."""

    def run(runner: Runner) -> Any:
        out = f"out-demo-{limit}"
        runner.lens(DEMO.format(limit=limit), out)
        return {name: runner.made(f"{out}/{name}") for name in DEMO_FILES}

    return run


def merge_item(method: str, options: str) -> Item:
    """A merge by one method as a checkpoint, and as an adapter."""

    def run(runner: Runner) -> Any:
        out = f"out-merge-{method}"
        command = f"{_MERGE} {method} {options}"
        whole = runner.told(command, "--out", out, codes=(0,)) | {"files": runner.made(out)}
        codes = (2,) if method in NO_LORA else (0,)
        adapter = runner.told(f"{command} {LORA}", "--out", f"{out}-lora", codes=codes)
        if method not in NO_LORA:
            adapter["files"] = runner.made(f"{out}-lora")
        return {"whole": whole, "adapter": adapter}

    return run


def shared(runner: Runner) -> Any:
    """The world's files, and the space and the ability that other items read."""
    twin = str(Path(SPACE).with_suffix(".json"))
    return {name: runner.made(name) for name in (WORLD, SPACE, twin, STATES, ABILITY)}


def verified(runner: Runner) -> Any:
    """A merge in the dtype of its base, made again."""
    merge, sample = VERIFY
    runner.lens(merge)
    return {
        "files": runner.made("merged"), "sample": runner.told(sample),
        "all": runner.told(VERIFY_ALL),
    }  # fmt: skip


def delta(runner: Runner) -> Any:
    """The delta atlas, as JSON and as a page."""
    found = {}
    for form in ("json", "html"):
        told = runner.told(DELTA, f"atlas.{form}", codes=(0,))
        found[form] = told | {"file": runner.made(f"atlas.{form}")}
    return found


def inspected(command: str, out: str) -> Item:
    """Inspection of the space: JSON, file and page."""
    return lambda runner: runner.told(command, codes=(0,)) | {"files": runner.made(out)}


def space_verbs(runner: Runner) -> Any:
    """A space without a language; a space shown."""
    drop, show = SPACE_VERBS
    dropped = runner.told(f"{drop} dropped.safetensors", "--json", codes=(0,))
    return {"drop": dropped, "file": runner.made("dropped.safetensors"), "show": runner.told(show)}


def ablated(runner: Runner) -> Any:
    """A small sweep over every method."""
    told = runner.told(ABLATE, "study", codes=(0,))
    return told | {"files": runner.made("study")}


def in_python(name: str) -> Item:
    """An item that calls functions: `CHILDREN`, in a process of its own."""

    def run(runner: Runner) -> Any:
        runner.process("-m", "tests.golden", "child", name)
        return runner.made(f"child-{name}.json")

    return run


def fill() -> None:
    """Add every item; the longest first, so that nothing waits for it at the end."""
    ITEMS["demo"] = demo(60)
    ITEMS["demo-full"] = demo(500)
    ITEMS["shared"] = shared
    ITEMS["ablate"] = ablated
    for name, command in {**TRAININGS, **PROBES, **EXTRACTS, **MAEC_TRAININGS}.items():
        command_item(name.replace(".yaml", ""), command + " --json")
    ITEMS["maec-run"] = lambda runner: (
        runner.told(RECIPE_RUN, "recipe", codes=(0,)) | {"files": runner.made("recipe")}
    )
    for method, options in MERGES.items():
        ITEMS[f"merge-{method}"] = merge_item(method, options)
    for name, command in MERGES_MORE.items():
        command_item(name, command)
    ITEMS["verify"] = verified
    ITEMS["delta"] = delta
    ITEMS["inspect-states"] = inspected(INSPECT_STATES, "inspection")
    ITEMS["inspect-text"] = inspected(INSPECT_TEXT, "read")
    ITEMS["space-verbs"] = space_verbs
    for job, commands in PLANS.items():
        printed_items(f"plan-{job}", commands, PROBLEMS)
    printed_items("data-check", CHECKS)
    for name, command in EVALS.items():
        printed_items(name, {"told": command})
    printed_items("steer", STEERS)
    for name in CHILDREN:
        ITEMS[name] = in_python(name)


# === items in Python: they run in a process of their own ==========================================


def found(place: str) -> Any:
    """Import ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


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
    model, tokenizer = found(LOAD)(CHAT)
    rows = [json.loads(line) for line in Path(TRAIN).read_text("utf-8").splitlines()[:30]]
    prompts = {code: [row[code] for row in rows] for code in rows[0]}
    space = found(PROBE_FUNCTION)(model, tokenizer, prompts, **PROBE_ARGUMENTS)
    getattr(space, SAVE)("python.safetensors")
    return contents(Path("python.safetensors"))


def numerics() -> Any:
    """Functions of the numerics on random arrays, in float32 and other dtypes, and their twins."""
    import numpy as np

    rng = np.random.default_rng(0)
    call = {name: found(place) for name, place in NUMERICS.items()}
    rows, tokens, width, langs = 37, 11, 48, 5

    def states(*shape: int, dtype: str = "float32") -> Any:
        return rng.normal(size=shape).astype(dtype)

    means, h, h0 = states(langs, width, dtype="float64"), states(rows, width), states(rows, width)
    many, many0 = states(rows, tokens, width), states(rows, tokens, width)
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, (rows, 1))).astype(np.int64)
    fit = call["subspace.fit"](means, rank="full")
    other = call["subspace.fit"](states(langs, width, dtype="float64"), rank=2)
    target = rng.normal(size=fit.basis.shape[1])
    weights = rng.uniform(0.1, 1, rows)
    half, half0 = h.astype("float16"), h0.astype("float16")
    pooled = states(langs, rows, width) + 2 * means[:, None].astype("float32")
    moments = call["stats.StreamingMoments"](width)
    for start in range(0, rows, 10):
        moments.update(h[start : start + 10], start)
    counts = call["neurons.Counts"](width)
    counts.update(many, mask)
    gram = call["resample.gram"](pooled)
    named = {str(code): block for code, block in enumerate(pooled)}
    opened = rng.integers(0, 50, (langs, 3, width))
    a, b = {"x": states(30, 20), "y": states(50)}, {"x": states(30, 20), "y": states(50)}
    wide = states(4, 70_000)
    bits = (wide.view("uint32") >> 16).astype("uint16")  # bfloat16
    results = {
        "stats.pool": [
            call["stats.pool"](many, mask, mode=mode) for mode in ("last", "mean", "weighted")
        ],
        "stats.StreamingMoments": moments.to_arrays(),
        "subspace.fit": [
            fit, other, call["subspace.fit"](means, agnostic="complement", noise=np.full(langs, 3)),
        ],
        "subspace.fit_batch": call["subspace.fit_batch"](
            np.stack([means, 2 * means]), noise=np.ones((2, langs))
        ),
        "subspace.principal_angles": call["subspace.principal_angles"](fit.basis, other.basis),
        "subspace.thin_svd": call["subspace.thin_svd"](means, rank=3),
        "subspace.thin_qr": call["subspace.thin_qr"](means.T.copy()),
        "subspace.project": [
            call["subspace.project"](x, fit.basis, strength=0.7) for x in (h, half, many)
        ],
        "losses.separate": [
            call["losses.separate"](x, x0, fit.basis, target, weights=w)
            for x, x0, w in ((h, h0, None), (h, h0, weights), (half, half0, None))
        ],
        "losses.align": [
            call["losses.align"](h, h0, direction=fit.agnostic, two_sided=True),
            call["losses.align"](h, h0, basis=fit.basis, weights=weights),
        ],
        "losses.retain": [
            call["losses.retain"](many, many0, mask, form=form) for form in ("token", "token_mean")
        ],
        "metrics.mexa": call["metrics.mexa"](h, h + 0.5 * h0, permutations=50, seed=1),
        "metrics.mexa_layers": call["metrics.mexa_layers"](pooled, pooled + 1, permutations=20),
        "metrics.separability": call["metrics.separability"](named, folds=4),
        "neurons.lape": call["neurons.lape"](opened, np.full(langs, 60), quantile=0.8, share=0.1),
        "neurons.Counts": counts.result(),
        "weights.delta": [
            call["weights.delta"](h, h0),
            call["weights.delta"](bits[0], bits[1], dtype="bfloat16"),
        ],
        "weights.sum_of_squares": call["weights.sum_of_squares"](wide[0], wide[1]),
        "weights.compare": call["weights.compare"]((wide[0], wide[1]), (wide[2], wide[3])),
        "weights.histogram": call["weights.histogram"](wide[0], wide[1]),
        "weights.importance": [
            call["weights.importance"](h, h0, unit=unit) for unit in ("row", "column")
        ],
        "weights.topk_masks": [
            call["weights.topk_masks"](a, b, share=0.3),
            call["weights.topk_masks"](a, b, k=7, per_tensor=True),
            call["weights.topk_masks"](a, b, share=0.2, unit="row"),
        ],
        "weights.topk_units": call["weights.topk_units"]({"x": np.abs(a["x"][0])}, k=4),
        "weights.combine": [
            call["weights.combine"]([wide[0], wide[1], wide[2]], np.array([0.5, 0.3, -0.1])),
            call["weights.combine"]([wide[0], wide[1]], np.ones(2), out_dtype="bfloat16"),
        ],
        "weights.count_nonfinite": call["weights.count_nonfinite"](np.array([1, np.nan], "f4")),
        "resample.gram": gram,
        "resample.bootstrap": call["resample.bootstrap"](gram, rank=2, n_resamples=60, seed=1),
        "resample.choose_rank": call["resample.choose_rank"](
            gram, n_resamples=40, n_permutations=40, seed=2
        ),
        "resample.permutation_spectrum": call["resample.permutation_spectrum"](
            gram, n_permutations=40, joint=False, seed=3
        ),
        "resample.stability_curve": call["resample.stability_curve"](
            gram, (5, 15), rank=2, n_resamples=40, seed=4
        ),
    }  # fmt: skip
    assert set(results) == set(NUMERICS), "a function of NUMERICS is not called"
    import torch

    t, twin = torch.from_numpy, {name: found(place) for name, place in TWINS.items()}
    basis, agnostic = t(fit.basis), t(fit.agnostic)
    results["twins"] = {
        "losses.separate": twin["losses.separate"](t(h), t(h0), basis, t(target)),
        "losses.align": twin["losses.align"](t(h), t(h0), direction=agnostic, two_sided=True),
        "losses.retain": twin["losses.retain"](t(many), t(many0), t(mask), form="token"),
        "stats.pool": twin["stats.pool"](t(many), t(mask), mode="weighted"),
    }
    return plain(results)


CHILDREN: dict[str, Callable[[], Any]] = {"probe-python": probe_python, "numerics": numerics}

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


def renamed(value: Any, path: tuple[str, ...] = ()) -> Any:
    """A value with `RENAMED_KEYS` applied."""
    if isinstance(value, list):
        return [renamed(inner, path) for inner in value]
    if not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    for key, inner in value.items():
        own = (*path, key)
        fitting = [old for old in RENAMED_KEYS if matches(old, own)]
        new = RENAMED_KEYS[max(fitting, key=len)] if fitting else key
        made[new] = renamed(inner, own)
    return made


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
        yield f"{path}: {short(a)} -> {short(b)}{apart(a, b)}"


def short(value: Any) -> str:
    """A value, cut."""
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
    names = sorted({path.stem for folder in (first, second) for path in folder.glob("*.json")})
    if not names:
        raise SystemExit(f"no recordings in {first} and {second}")
    count = 0
    for name in names:
        paths = [folder / f"{name}.json" for folder in (first, second)]
        if missing := [path for path in paths if not path.is_file()]:
            print(f"different  {name}: not recorded in {missing[0].parent}")
            count += 1
            continue
        a, b = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        found = list(differences(renamed(a), b))
        print(f"{'different' if found else 'equal':<10} {name}")
        for line in found[:most]:
            print(f"             {line}")
        if len(found) > most:
            print(f"             and {len(found) - most} more (--most {len(found)})")
        count += bool(found)
    print(f"{len(names) - count} of {len(names)} items are equal")
    return count


def main() -> None:
    """Read the command line."""
    fill()
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
        names = given.only.split(",") if given.only else [
            name for name in ITEMS if given.all or name not in LONG
        ]  # fmt: skip
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
