"""``lens space``: merging, extending, cutting, showing and sharing spaces; hashes on use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

import lens
from lens.errors import InputError
from lens.space.space import Space
from tests.helpers import tiny
from tests.helpers.command import run

RNG = np.random.default_rng(0)
STATES = {code: RNG.normal(size=(20, 6)) for code in ("en", "es", "sw")}


def made(codes=("en", "es", "sw"), rows=slice(0, 20)):
    states = {code: STATES[code][rows] for code in codes}
    return Space.from_states(states, pivot="en", site="block.0", row_offset=rows.start)


def test_merge_extend_drop_and_show(tmp_path):
    files = {
        "first": made(rows=slice(0, 8)),
        "second": made(rows=slice(8, 20)),
        "two": made(("en", "es")),
        "more": made(("en", "sw")),
    }
    place = {name: space.save(tmp_path / f"{name}.safetensors") for name, space in files.items()}
    out = tmp_path / "out.safetensors"
    done = run("space", "merge", place["second"], place["first"], "--out", out, "--json")
    assert json.loads(done.stdout)["counts"] == {"eng_Latn": 20, "spa_Latn": 20, "swh_Latn": 20}
    np.testing.assert_allclose(Space.load(out).means(0), made().means(0), rtol=1e-12)
    again = run("space", "merge", place["first"], place["second"], "--out", out)
    assert again.exit_code == 2 and "--force" in again.stderr
    done = run("space", "extend", place["two"], place["more"], "--out", out, "--force")
    assert done.exit_code == 0 and "3 languages" in done.stdout
    assert Space.load(out).sha256 == made().sha256
    dropped = tmp_path / "dropped.safetensors"
    assert run("space", "drop", out, "--langs", "Swahili", "--out", dropped).exit_code == 0
    assert Space.load(dropped).sha256 == files["two"].sha256
    shown = run("space", "show", dropped).stdout
    assert "Spanish: 20 rows (0-19 " in shown and files["two"].sha256 in shown
    assert json.loads(run("space", "show", dropped, "--json").stdout)["pivot"] == "eng_Latn"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("merge a.safetensors --out o", "one space only"),
        ("merge a.safetensors a.safetensors --out o", "rows 0 to 19 of eng_Latn are in both"),
        ("extend a.safetensors b.safetensors --out o", "is in both spaces with different rows"),
        ("merge a.safetensors absent.safetensors --out o", "does not exist; make one with"),
        ("drop a.safetensors --langs en --out o", "pivot eng_Latn cannot be dropped"),
        ("drop a.safetensors --langs tr --out o", "is not in this space"),
        ("show notes.txt", "cannot be read as a language space"),
        ("push a.safetensors", "give REPO to upload to, or --export"),
        ("push a.safetensors just-a-name", "no repository id; expected owner/name"),
        ("mrge a b", "did you mean 'merge'?"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    made().save("a.safetensors")
    made(rows=slice(0, 8)).save("b.safetensors")
    Path("notes.txt").write_text("no space")
    before = sorted(tmp_path.iterdir())
    done = run("space", *arguments.split())
    assert done.exit_code == 2 and words in done.stderr and done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize("change", ["a mean", "a count of the record"])
def test_a_changed_file_is_refused(tmp_path, change):
    path = made().save(tmp_path / "s.safetensors")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    if change == "a mean":
        arrays["moments/block.0/spa_Latn/mean"][0, 0] += 1e-9
    else:
        metadata["about"] = metadata["about"].replace('"rows": 20', '"rows": 21', 1)
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(InputError, match="does not have the hash it was saved with"):
        Space.load(path)


def test_a_file_without_a_hash_is_read(tmp_path):
    path = made().save(tmp_path / "s.safetensors")
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    assert about.pop("sha256") == made().sha256
    save_file(arrays, path, metadata={"schema": "lens.space/1", "about": json.dumps(about)})
    assert Space.load(path).sha256 == made().sha256


def test_another_tokenizer_is_refused():
    rows = {"en": ["a bird", "a house"], "es": ["un ave", "una casa"]}
    space = lens.probe(tiny.model(), tiny.tokenizer(), rows, pivot="en", sites=0)
    space.check_tokenizer(tiny.tokenizer())
    made().check_tokenizer(tiny.tokenizer())  # states alone: there is nothing to compare
    other = tiny.tokenizer()
    other.add_tokens(["bird"])
    with pytest.raises(InputError, match="another tokenizer"):
        space.check_tokenizer(other)


# ---------------------------------------------------------------- sharing


def test_the_files_of_an_upload(tmp_path):
    space = made()
    source = space.save(tmp_path / "s.safetensors")
    done = run("space", "push", source, "--export", tmp_path / "upload")
    assert done.exit_code == 0, done.stderr
    names = {item.name for item in (tmp_path / "upload").iterdir()}
    assert names == {"space.safetensors", "space.json", "README.md"}
    card = (tmp_path / "upload" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["language"] == ["eng", "spa", "swh"] and "language-space" in head["tags"]
    assert space.sha256 in card and "| Swahili | `swh_Latn` | 20 |" in card
    assert "not recorded: made from states" in card
    assert Space.load(tmp_path / "upload").sha256 == space.sha256
    assert run("space", "push", source, "--export", tmp_path / "upload").exit_code == 2
    rows = {"en": ["a bird", "a house"], "es": ["un ave", "una casa"]}
    probed = lens.probe(tiny.model(), tiny.tokenizer(), rows, pivot="en", sites=0)
    probed.export(tmp_path / "probed")
    card = (tmp_path / "probed" / "README.md").read_text(encoding="utf-8")
    assert "llama, 3 blocks of width 32" in card and "{" not in card


def in_child(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run code with an empty cache of the hub, offline: the library reads both at import."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HOME": str(cache)}
    root = str(Path(lens.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | environment | {"PYTHONPATH": root},
    )  # fmt: skip


def test_loading_by_id_from_the_cache_of_the_hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--a-space"
    made().export(tmp_path / "upload")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tmp_path / "upload", repository / "snapshots" / commit)
    code = "from lens.space.space import Space; print(Space.load({!r}).sha256)"
    for name in ("someone/a-space", f"someone/a-space@{commit}"):
        done = in_child(code.format(name), tmp_path / "cache")
        assert done.stdout.strip() == made().sha256, done.stderr
    absent = in_child(code.format("someone/another"), tmp_path / "cache")
    assert "neither a file here nor did the hub give it" in absent.stderr
    out = tmp_path / "pulled.safetensors"
    pulled = "from lens.cli.app import main; main(['space', 'pull', {!r}, '--out', {!r}])"
    done = in_child(pulled.format("someone/a-space", str(out)), tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert Space.load(out).sha256 == made().sha256


def test_a_push_without_the_hub_is_one_message(tmp_path):
    pytest.importorskip("huggingface_hub")
    path = made().save(tmp_path / "s.safetensors")
    code = (
        f"from lens.cli.app import main; main(['space', 'push', {str(path)!r}, 'someone/a-space'])"
    )
    done = in_child(code, tmp_path / "cache")
    assert done.returncode == 2 and "cannot push to 'someone/a-space'" in done.stderr
    assert "Traceback" not in done.stderr
