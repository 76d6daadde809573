"""Share a space on the Hugging Face Hub: upload files, model card, loading by id."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lens.data.languages import english_name
from lens.errors import InputError, MissingExtraError, first_line
from lens.space import io
from lens.space.provenance import Provenance

_TEXT = """\
# Language space

Means and spread of the states of a language model, per language and place, without any text: what
[lens](https://pypi.org/project/lens-lm/) needs to steer, train or inspect its languages.

```python
import lens
space = lens.Space.load("OWNER/NAME")     # this repository
print(space.summary())
```

{facts}

## Languages

| language | code | rows |
|---|---|---|
{languages}

## Places

{sites} (block outputs, counted from 0; `final` is after the final norm). Width {width}.

The hash of the content is `{sha256}`; it is checked when the file is loaded, and the model's when
it is used.
"""


def card(
    about: Provenance, counts: Mapping[str, int], sites: Sequence[str], width: int, sha256: str
) -> str:
    """Write the card of a space, README.md: a YAML head and Markdown.

    ``counts`` are rows by language; ``sha256`` is the hash of the content of the space.
    """
    model = about.model
    head = {
        "library_name": "lens-lm",
        "tags": ["lens", "language-space", "multilingual", "interpretability"],
        "language": sorted({code.partition("_")[0] for code in counts}),
    }
    facts = {
        "pivot": f"{english_name(about.pivot)} ({about.pivot})",
        "model": f"{model.get('model_type')}, {model.get('num_hidden_layers')} blocks of width "
        f"{model.get('hidden_size')}, weights `{str(model.get('weights_sha256'))[:16]}`"
        if model
        else "not recorded: made from states",
        "tokenizer": f"`{about.tokenizer_sha256[:16]}`"
        if about.tokenizer_sha256
        else "not recorded",
        "a row is": about.role,
        "pooling": about.pooling,
        "rows cut at": f"{about.max_tokens} tokens" if about.max_tokens else "not cut",
        "chat template": f"`{about.template_sha256[:16]}`" if about.template_sha256 else "none",
        "made by": f"lens {about.package_version}, seed {about.seed}",
    }
    rows = [f"| {english_name(code)} | `{code}` | {count} |" for code, count in counts.items()]
    body = _TEXT.format(
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        languages="\n".join(rows),
        sites=", ".join(f"`{site}`" for site in sites),
        width=width,
        sha256=sha256,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{body}"


_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def looks_like_id(name: str) -> bool:
    """Whether a name can be a repository: ``owner/name`` without an ending of ours."""
    return (
        _ID.fullmatch(name) is not None and not name.startswith(".") and ".safetensors" not in name
    )


def push(export: Callable[[Path], Path], repo: str, *, private: bool, revision: str | None) -> str:
    """Upload the folder that ``export`` writes; see `Space.push`."""
    if not looks_like_id(repo) or "@" in repo:
        raise InputError(f"'{repo}' is no repository id; expected owner/name")
    hub = _library("pushing a space")
    with tempfile.TemporaryDirectory() as place:
        folder = export(Path(place) / "upload")
        try:
            api = hub.HfApi()
            api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo,
                folder_path=str(folder),
                repo_type="model",
                revision=revision,
                commit_message="Language space from lens",
            )
        except Exception as error:  # the library raises its own and its transport's errors
            raise InputError(
                f"cannot push to '{repo}': {first_line(error)}; check the id, the network and "
                "`hf auth login`, or write the files with --export and upload them"
            ) from error
    return str(done)


def fetch(name: str) -> Path:
    """Download the file of ``owner/name`` or ``owner/name@revision``; return its cached path."""
    repo, _, revision = name.partition("@")
    hub = _library(f"loading the space '{name}' by id")
    try:
        return Path(hub.hf_hub_download(repo, io.NAME, revision=revision or None))
    except Exception as error:  # the library raises its own and its transport's errors
        raise InputError(
            f"space '{name}' is neither a file here nor did the hub give it ({first_line(error)}); "
            "make one with lens probe, or check the id, the network and your access"
        ) from error


def _library(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hf", purpose) from None
    return huggingface_hub
