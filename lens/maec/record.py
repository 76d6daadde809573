"""What stands beside the weights of a merge: configuration, tokenizer, card, reproduce.json."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lens
from lens.checksums import checksum
from lens.maec.comparing import new_template
from lens.maec.decoding import is_8_bit
from lens.maec.planning import MergePlan
from lens.maec.shards import INDEX, Shard, index_of
from lens.maec.targets import SLICE

SCHEMA = "lens.merge/2"
REPRODUCE = "reproduce.json"
# Weights in any format, and files that tell of the source and not of the result.
_LEFT_OUT = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf",
    ".index.json", ".md", ".jsonl", ".log", ".png", ".jpg", ".yaml", ".yml",
)  # fmt: skip
_LEFT_OUT_NAMES = ("config.json", REPRODUCE, "made.json")
_NOT_OF_THE_RESULT = ("--resume", "--force", "--quiet", "--json", "-v")
_CARD = """---
tags: [merge, lens]
---
# {title} of {count} models

Made by `lens merge` {version}: {method}{paper}, {arithmetic}.

{models}

```yaml
{config}```

`{reproduce}` holds versions, hashes of what was read, and checksums of what was written;
`lens verify` makes tensors again and compares.
"""


def identity(plan: MergePlan, shard_size: int) -> dict[str, Any]:
    """Everything that decides the bytes of a result, in plain values."""
    return {
        "schema": SCHEMA,
        "lens": lens.__version__,
        "config": plan.config.model_dump(mode="json", exclude_defaults=True),
        "sources": {source.reference: source.identity() for source in plan.sources},
        "slice_elements": SLICE,
        "shard_size": shard_size,
    }


def checksum_of(checksums: Sequence[int]) -> str:
    """One checksum for the slices of a tensor: the XXH64 of their XXH64s."""
    return f"{checksum(b''.join(n.to_bytes(8, 'little') for n in checksums)):016x}"


def write(
    folder: Path,
    plan: MergePlan,
    shards: Sequence[Shard],
    decided: Mapping[str, Any],
    facts: Mapping[str, Any],
    checksums: Mapping[tuple[int, int], int],
) -> None:
    """Write everything but the weights into the folder of a result."""
    index = index_of(shards)
    if index is not None:
        (folder / INDEX).write_text(index, encoding="utf-8")
    if plan.template is not None and plan.template.checkpoint is not None:
        source = plan.template.checkpoint.folder
        _copy_rest(source, folder)
        _write_config(plan, source / "config.json", folder)
        template = new_template(plan.config, plan.sources, source)
        if template is not None:  # it goes before what tokenizer_config.json may have
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    text = _yaml(plan)
    (folder / "merge.yaml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(_card(plan, text), encoding="utf-8")
    written = {
        target.name: checksum_of([checksums[target.number, cut.number] for cut in target.cuts])
        for target in plan.targets
    }
    content = {
        **decided,
        "command": [Path(sys.argv[0]).name, *_telling(sys.argv[1:])],
        "versions": _versions(),
        "facts": facts,
        "checksums": written,
    }
    (folder / REPRODUCE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _copy_rest(source: Path, folder: Path) -> None:
    """Copy tokenizer, template, generation settings and code byte for byte."""
    for item in sorted(source.iterdir()):
        if not item.is_file():
            if item.name == "additional_chat_templates":
                shutil.copytree(item, folder / item.name, dirs_exist_ok=True)
            continue
        left_out = item.name.endswith(_LEFT_OUT) or item.name in _LEFT_OUT_NAMES
        if not left_out and not item.name.startswith("."):
            shutil.copyfile(item, folder / item.name)


def _write_config(plan: MergePlan, path: Path, folder: Path) -> None:
    """Copy config.json; only a new dtype or number of blocks is written into it."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    changes: dict[str, Any] = {}
    dtype = plan.config.out_dtype or plan.config.dtype or _decoded(plan)
    key = "torch_dtype" if "torch_dtype" in content else "dtype"
    if dtype is not None and content.get(key) != dtype:
        changes[key] = dtype
    if plan.config.slices and plan.targets:
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if key in content:
                changes |= _each_layer(plan, content, int(content[key]))
                changes[key] = plan.targets[0].n_blocks
        changes = {key: value for key, value in changes.items() if content.get(key) != value}
    if not changes:
        shutil.copyfile(path, folder / "config.json")
        return
    text = json.dumps({**content, **changes}, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _decoded(plan: MergePlan) -> str | None:
    """Name what 8-bit floats became: results are not rounded to them."""
    if plan.template is None or not any(is_8_bit(x.kind) for x in plan.template.tensors.values()):
        return None
    return "float32"


def _each_layer(plan: MergePlan, content: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Put lists that say something of each layer, as layer_types does, in the result's order."""
    blocks: list[int] = []
    for part in plan.config.slices:
        base = part.base_model or plan.config.base_model
        taken = next((s for s in part.sources if s.model == base), part.sources[0])
        blocks += range(*taken.layer_range)
    if max(blocks) >= count:
        return {}
    lists = {key: x for key, x in content.items() if isinstance(x, list) and "layer" in key}
    return {key: [x[n] for n in blocks] for key, x in lists.items() if len(x) == count}


def _yaml(plan: MergePlan) -> str:
    import yaml

    values = plan.config.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _card(plan: MergePlan, config: str) -> str:
    method = plan.method
    names = [Path(source.reference).name for source in plan.sources]
    return _CARD.format(
        title=method.title,
        count=len(names),
        version=lens.__version__,
        method=method.title,
        paper=f" ({method.paper})" if method.paper else "",
        arithmetic="calculated in float32 and rounded once",
        models="\n".join(f"- {name}" for name in names),
        config=config,
        reproduce=REPRODUCE,
    )


def _telling(arguments: Sequence[str]) -> list[str]:
    """Arguments without those that change nothing in the result."""
    return [argument for argument in arguments if argument not in _NOT_OF_THE_RESULT]


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"lens": lens.__version__, "python": platform.python_version()}
    for package in ("numpy", "pydantic", "pyyaml"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
