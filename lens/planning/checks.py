"""What is wrong with a model, a space or a machine for a plan: every problem at once."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.models.checkpoint import FLOATING, Checkpoint
from lens.planning.memory import Phase
from lens.planning.model import TABLES, MetaModel, Structure, depth_of
from lens.planning.results import DiskUse, Problem

if TYPE_CHECKING:
    from lens.models.tokenization import ChatOptions
    from lens.space.space import Space

_SHOWN = 4


def said(size: float) -> str:
    """Write a number of bytes as a person would."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1e3:.1f} kB"


def listed(names: Sequence[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def of_files(checkpoint: Checkpoint) -> list[Problem]:
    """Broken files, dtypes that do not belong together, packed weights."""
    found = [Problem("files", text) for text in checkpoint.problems]
    floating = Counter(t.dtype for t in checkpoint.tensors.values() if t.dtype in FLOATING)
    packed = Counter(
        t.dtype
        for n, t in checkpoint.tensors.items()
        if t.dtype not in FLOATING and not TABLES.search(n)
    )
    if len(floating) > 1:
        each = ", ".join(f"{n} tensors in {dtype}" for dtype, n in floating.most_common())
        found.append(
            Problem("dtype", f"the files mix dtypes ({each}); all become {checkpoint.dtype} when "
                    "they are loaded", "warning")
        )  # fmt: skip
    if packed:
        each = ", ".join(f"{n} in {dtype}" for dtype, n in packed.most_common())
        found.append(
            Problem("dtype", f"tensors are packed ({each}); parameters are counted as they are "
                    "stored, and trained blocks are unpacked first", "warning")
        )  # fmt: skip
    if not checkpoint.tensors and not checkpoint.problems:
        found.append(
            Problem("files", "there are no weights beside the config; sizes are those the config "
                    "promises, and the job will need the weights", "warning")
        )  # fmt: skip
    return found


def of_tokenizer(
    checkpoint: Checkpoint, structure: Structure, chat: ChatOptions | None
) -> list[Problem]:
    """Whether there is a tokenizer that fits the model, and a template."""
    if not checkpoint.tokenizer_files():
        level: Any = "error" if checkpoint.tensors else "warning"
        return [
            Problem("tokenizer", "there is no tokenizer beside the config (tokenizer.json or "
                    "tokenizer.model); copy the model's own there", level)
        ]  # fmt: skip
    found = []
    largest = _largest_token(checkpoint)
    if largest is not None and structure.vocabulary and largest >= structure.vocabulary:
        found.append(
            Problem("tokenizer", f"the tokenizer has ids up to {largest}, the embedding has "
                    f"{structure.vocabulary} rows; one of the two is another model's")
        )  # fmt: skip
    wanted = None if chat is None else chat.template
    if not checkpoint.has_template() and wanted is not False:
        text = "the tokenizer has no chat template"
        if wanted:
            found.append(Problem("tokenizer", f"{text}, and one was asked for"))
        else:
            found.append(Problem("tokenizer", f"{text}; prompts go in as plain text", "warning"))
    return found


def _largest_token(checkpoint: Checkpoint) -> int | None:
    try:
        text = (checkpoint.folder / "tokenizer.json").read_text(encoding="utf-8")
        content = json.loads(text)
        vocabulary = content["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = (token["id"] for token in content.get("added_tokens", ()))
        return max((*ids, *added), default=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def of_structure(checkpoint: Checkpoint, structure: Structure) -> list[Problem]:
    """Compare blocks with each other, and sizes with the config."""
    found = []
    config, name = checkpoint.text_config, structure.blocks_name
    depth = depth_of(checkpoint)
    if depth is not None and depth != len(structure.blocks):
        found.append(f"the config promises {depth} blocks, the files hold {len(structure.blocks)}")
    usual = Counter(inner for block in structure.blocks for inner in block)
    often = {inner for inner, n in usual.items() if 2 * n > len(structure.blocks)}
    for i, block in enumerate(structure.blocks):
        missing = sorted(often - block.keys())
        if missing:
            found.append(
                f"{name}.{i} lacks {listed(missing)}, which other blocks have; download the file "
                "that should hold it again"
            )
    shapes = Counter((inner, s) for block in structure.blocks for inner, s in block.items())
    for i, block in enumerate(structure.blocks):
        odd = [n for n, s in block.items() if n in often and 20 * shapes[n, s] < usual[n]]
        if odd:
            found.append(f"{name}.{i}: {listed(odd)} has another shape than in other blocks")
    for key, there in (("vocab_size", structure.vocabulary), ("hidden_size", structure.width)):
        promised = config.get(key)
        if isinstance(promised, int) and there and promised != there:
            found.append(f"the config says {key} {promised}, the tensors {there}")
    if not structure.embedding:
        found.append("there is no embedding among the tensors")
    if not structure.head and config.get("tie_word_embeddings") is False:
        found.append("there is no output head, and the config says that it is not the embedding")
    return [Problem("architecture", text) for text in found]


def of_architecture(checkpoint: Checkpoint, ghost: MetaModel) -> list[Problem]:
    """Compare names and shapes with what the library's model of this architecture expects."""
    prefix = f"{getattr(ghost.model, 'base_model_prefix', '')}."
    held = {n: t.shape for n, t in checkpoint.tensors.items() if not TABLES.search(n)}
    if ghost.renamed:  # stored under other names: only the numbers can be compared
        expected = sum(_product(shape) for shape in ghost.shapes.values())
        there = sum(_product(shape) for shape in held.values())
        if expected == there:
            return []
        text = f"the files hold {there:,} parameters, the architecture has {expected:,}"
        return [Problem("architecture", text)]

    def bare(name: str) -> str:
        return name.removeprefix(prefix)

    stored = {bare(name): shape for name, shape in held.items()}
    wanted = {bare(name): shape for name, shape in ghost.shapes.items()}
    inside = bare(f"{ghost.structure(checkpoint).blocks_name}.")
    buffers = {bare(name) for name, _ in ghost.model.named_buffers()}
    missing = [name for name in wanted if name not in stored]
    extra = [n for n in stored if n not in wanted and n not in buffers | set(map(bare, ghost.tied))]
    for name in [n for n in missing if not n.startswith(inside)]:  # a head of another name
        twin = next((n for n in extra if stored[n] == wanted[name]), None)
        if twin is not None and not twin.startswith(inside):
            missing.remove(name)
            extra.remove(twin)
    differing = [
        f"{n} {list(stored[n])} where {list(wanted[n])} is expected"
        for n in wanted
        if n in stored and stored[n] != wanted[n]
    ]
    kind = type(ghost.model).__name__
    found = []
    if missing:
        found.append(
            f"missing for {kind}: {listed(missing)}; the checkpoint is incomplete, or its config "
            "is another model's"
        )
    if extra:
        found.append(f"not part of {kind}: {listed(extra)}; loading would ignore them")
    if differing:
        found.append(f"shapes differ from {kind}: {listed(differing)}")
    level: dict[bool, Any] = {True: "error", False: "warning"}
    return [Problem("architecture", t, level[not t.startswith("not part")]) for t in found]


def of_space(
    space: Space, checkpoint: Checkpoint, rows: Iterable[str], sites: Iterable[str]
) -> list[Problem]:
    """Whether a space is this model's, as far as sizes tell, and has the languages and sites."""
    found = []
    lacking = [site for site in sites if site not in space.sites]
    if lacking:
        found.append(
            f"the losses read {', '.join(lacking)}, the space has {listed(space.sites)}; probe "
            "with --sites all"
        )
    absent = [lang for lang in rows if lang not in space.languages]
    if absent:
        found.append(
            f"the space has no {', '.join(absent)} (it has {', '.join(space.languages)}); probe "
            "again with these languages, or leave them out with --langs"
        )
    read = space.to_dict()["about"].get("model") or {}
    config = checkpoint.text_config
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        mine = checkpoint.config.get(key) if key == "model_type" else config.get(key)
        if key in read and mine is not None and read[key] is not None and read[key] != mine:
            found.append(f"the space is of another model: its {key} is {read[key]}, here {mine}")
    return [Problem("space", text) for text in found]


def of_disk(uses: Sequence[DiskUse]) -> list[Problem]:
    """File systems that all that goes to them together would fill."""
    together: dict[int, list[DiskUse]] = {}
    for use in uses:
        together.setdefault(existing(Path(use.where)).stat().st_dev, []).append(use)
    found = []
    for shared in together.values():
        needed, free = sum(use.nbytes for use in shared), min(use.free for use in shared)
        if needed > free:
            what = ", ".join(f"{use.what} {said(use.nbytes)} in {use.where}" for use in shared)
            found.append(
                Problem("disk", f"{said(needed)} are needed where {said(free)} are free ({what}); "
                        "free some space, or name other folders (--out, --cache, TMPDIR)")
            )  # fmt: skip
    return found


def of_memory(memory: Sequence[Phase], free: int | None, advice: str) -> list[Problem]:
    """Whether the machine has what the largest phase needs."""
    most = max(memory, key=lambda phase: phase.total)
    if free is None or most.total <= free:
        return []
    text = f"phase {most.name} needs {said(most.total)} of memory, {said(free)} are free"
    return [Problem("memory", f"{text}; {advice}")]


def existing(folder: Path) -> Path:
    """Return the nearest folder above that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    return shutil.disk_usage(existing(folder)).free


def free_memory() -> int | None:
    """Bytes of memory that are free or can be freed; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return None


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
