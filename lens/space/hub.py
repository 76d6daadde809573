"""Share a space on the Hugging Face Hub: the files of an upload, and loading by id.

``huggingface_hub`` is imported when a repository is named and never otherwise.
"""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.errors import InputError, MissingExtraError
from lens.io import new_folder, write_text
from lens.space import card, file

if TYPE_CHECKING:
    from lens.space.space import Space

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def looks_like_id(name: str) -> bool:
    """Whether a name can be a repository: ``owner/name`` without an ending of ours."""
    return (
        _ID.fullmatch(name) is not None and not name.startswith(".") and ".safetensors" not in name
    )


def export(space: "Space", folder: Path, *, force: bool) -> Path:
    """Write the files of an upload.

    Raises
    ------
    InputError
        When the folder exists (without `force`) or cannot be written.
    """
    with new_folder(folder, force=force) as place:
        space.save(place / file.NAME)
        write_text(place / "README.md", card.of(space))
    return folder


def push(space: "Space", repo: str, *, private: bool, revision: str | None) -> str:
    """Upload a space and its card; see `Space.push`."""
    if not looks_like_id(repo) or "@" in repo:
        raise InputError(f"'{repo}' is no repository id; expected owner/name")
    hub = _library("pushing a space")
    with tempfile.TemporaryDirectory() as place:
        folder = export(space, Path(place) / "upload", force=False)
        try:
            api = hub.HfApi()
            api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=str(folder), repo_type="model", revision=revision,
                commit_message="Language space from lens",
            )  # fmt: skip
        except Exception as error:  # the library raises its own and its transport's errors
            raise InputError(
                f"cannot push to '{repo}': {_short(error)}; check the id, the network and "
                "`hf auth login`, or write the files with --export and upload them"
            ) from error
    return str(done)


def fetch(name: str) -> Path:
    """Bring a space's file into the local cache and return where it lies.

    Parameters
    ----------
    name : str
        ``owner/name`` or ``owner/name@revision``.

    Raises
    ------
    InputError
        When it is not in the cache and the hub does not give it.
    MissingExtraError
        When huggingface_hub is not installed.
    """
    repo, _, revision = name.partition("@")
    hub = _library(f"loading the space '{name}' by id")
    try:
        return Path(hub.hf_hub_download(repo, file.NAME, revision=revision or None))
    except Exception as error:  # the library raises its own and its transport's errors
        raise InputError(
            f"space '{name}' is neither a file here nor did the hub give it ({_short(error)}); "
            "make one with lens probe, or check the id, the network and your access"
        ) from error


def _library(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hf", purpose) from None
    return huggingface_hub


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
