"""States made elsewhere become the same space, and whatever is wrong with them is told."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from lens.errors import DtypeError, InputError, ShapeError
from lens.models.hidden_states import capture
from lens.pooling import pool
from lens.space.importers import as_states, read_states
from lens.space.space import Space
from tests.helpers import tiny
from tests.helpers.command import run

RNG = np.random.default_rng(0)
LANGUAGES = ("en", "es", "sw")
N, D = 12, 8
SITES = ("block.0", "block.1", "final")


@pytest.fixture
def states():
    return {code: RNG.normal(size=(N, len(SITES), D)) for code in LANGUAGES}


def table(states):
    return {site: {c: x[:, i] for c, x in states.items()} for i, site in enumerate(SITES)}


# ---------------------------------------------------------------- arrays of any library


class OnlyDlpack:
    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class OnlyInterface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">f8"),
        lambda x: np.asfortranarray(x),
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: OnlyInterface(x),
        lambda x: OnlyDlpack(x),
        lambda x: OnlyDlpack(torch.tensor(x)),
        lambda x: memoryview(x),
    ],
)
def test_any_array_gives_the_same_states(convert):
    x = RNG.normal(size=(N, D)).astype(np.float32).astype(np.float64)
    if isinstance(convert(x), memoryview):
        with pytest.raises(DtypeError, match="got memoryview, expected an array"):
            as_states(convert(x), "x")
        return
    np.testing.assert_array_equal(as_states(convert(x), "x"), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrap", [lambda x: x, OnlyDlpack])
def test_narrow_tensors_keep_their_values(dtype, wrap):
    x = torch.tensor(RNG.normal(size=(N, D))).to(dtype)
    np.testing.assert_array_equal(as_states(wrap(x), "x"), x.double().numpy())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((3, 4), int), DtypeError, "x: dtype int64, expected floating point states"),
        (np.zeros((3, 4), np.uint16), DtypeError, "raw bfloat16 must come as a torch tensor"),
        (np.zeros((3, 4), complex), DtypeError, "dtype complex128"),
        (np.array([["a"]]), DtypeError, "expected floating point"),
        ([[1.0]], DtypeError, "got list, expected an array"),
        (np.zeros(3), ShapeError, r"shape \(3,\), expected \(n, d\)"),
        (np.zeros((0, 4)), ShapeError, r"shape \(0, 4\)"),
        (np.array([[1.0], [np.inf]]), InputError, "row 1 is not finite"),
        (torch.zeros(2, 2, device="meta"), InputError, "the tensor has no values to read"),
    ],
)
def test_what_is_no_array_of_states(bad, error, message):
    with pytest.raises(error, match=message):
        as_states(bad, "x")


def test_one_site(states):
    one = {code: x[:, 0] for code, x in states.items()}
    made = Space.from_states(one, pivot="English", site="block.3")
    assert made.sites == ("block.3",) and made.about.typed["swh_Latn"] == "sw"
    assert made.about.data["eng_Latn"][0].rows == N
    np.testing.assert_allclose(made.means(3)[1], one["es"].mean(0))
    with pytest.raises(InputError, match=r"for one site pass site='block.7'"):
        Space.from_states(one, pivot="en")
    with pytest.raises(ShapeError, match="es at final: width 4, expected 8 as before"):
        Space.from_states({"en": one["en"], "es": one["es"][:, :4]}, pivot="en", site="final")
    with pytest.raises(ShapeError, match="11 rows, expected 12 as at the other sites"):
        Space.from_states({"block.0": one, "final": {**one, "es": one["es"][:-1]}}, pivot="en")


def test_shards_of_states_merge(states):
    whole = Space.from_states(table(states), pivot="en")
    halves = [
        Space.from_states(
            table({c: x[part] for c, x in states.items()}), pivot="en", row_offset=part.start
        )
        for part in (slice(0, 5), slice(5, N))
    ]
    merged = halves[1].merge(halves[0])
    for site in SITES:
        np.testing.assert_allclose(merged.means(site), whole.means(site), rtol=1e-12)
    with pytest.raises(InputError, match="rows 0 to 4 of eng_Latn are in both"):
        merged.merge(halves[0])


# ---------------------------------------------------------------- folders


def write_npy(folder, states):
    for code, x in states.items():
        np.save(folder / f"{code}.npy", x)
    return {"sites": SITES}


def write_safetensors_each(folder, states):
    for code, x in states.items():
        tensors = {site: np.ascontiguousarray(x[:, i]) for i, site in enumerate(SITES)}
        save_file(tensors, folder / f"{code}.safetensors")
    return {}


def write_lrd(folder, states):
    for code, x in states.items():
        (folder / code / "acts").mkdir(parents=True)
        torch.save(torch.tensor(x), folder / code / "acts" / f"{code}.pt")
    return {"pooling": "last"}


WRITERS = [write_npy, write_safetensors_each, write_lrd]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_states(tmp_path, states, write):
    options = write(tmp_path, states)
    read = read_states(tmp_path, **options)
    sites = ("block.0", "block.1", "block.2") if write is write_lrd else SITES
    assert tuple(read.states) == sites and read.warnings == ()
    for i, site in enumerate(sites):
        for code, x in states.items():
            np.testing.assert_array_equal(read.states[site][code], x[:, i])
    some = read_states(tmp_path, languages=["Spanish", "eng"], **options)
    assert set(some.states["block.0"]) == {"en", "es"}


def test_one_file_of_all(tmp_path, states):
    file = tmp_path / "states.safetensors"
    flat = {f"{s}/{c}": torch.tensor(x).bfloat16() for s, f in table(states).items()
            for c, x in f.items()}  # fmt: skip
    save_torch(flat, file)
    read = read_states(file, sites=["final"])
    assert list(read.states) == ["final"]
    np.testing.assert_array_equal(read.states["final"]["sw"], flat["final/sw"].double().numpy())
    save_torch({"x": torch.zeros(2, 2)}, file)
    with pytest.raises(InputError, match=r"a tensor 'x'; expected names such as block.7/swh_Latn"):
        read_states(file)


# ---------------------------------------------------------------- files that may run code


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("hide", [lambda x: x, lambda x: {0: [x]}, lambda x: np.array([x])])
def test_a_file_of_tensors_cannot_run_code(tmp_path, monkeypatch, hide):
    monkeypatch.chdir(tmp_path)
    torch.save(hide(Attack()), tmp_path / "en.pt")
    with pytest.raises(InputError, match=r"'en.pt' cannot be read as tensors alone .* safetensors"):
        read_states(tmp_path, sites=["final"], pooling="last")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["en.pkl", "en_hidden_last.pkl"])
@pytest.mark.parametrize("content", [Attack(), np.zeros((2, 3, 4)), {0: []}])
def test_pickles_are_refused_unread(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=rf"'{name}' is a pickle.*save its states as en\.npy"):
        read_states(tmp_path, sites=["final"], pooling="last")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_damaged_files_of_tensors(tmp_path, states, kept):
    write_lrd(tmp_path, states)
    file = tmp_path / "sw" / "acts" / "sw.pt"
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(InputError, match=r"'sw\.pt' cannot be read as tensors alone"):
        read_states(tmp_path, pooling="last")


def test_files_of_tensors_of_the_wrong_kind(tmp_path):
    torch.save(torch.zeros(2, 3, 4), tmp_path / "en.pt")
    with pytest.raises(InputError, match="holds last tokens; choose --pooling last, not mean"):
        read_states(tmp_path)
    torch.save({"x": torch.zeros(2, 3, 4)}, tmp_path / "en.pt")
    with pytest.raises(DtypeError, match=r"en\.pt: got dict, expected an array"):
        read_states(tmp_path, pooling="last")


# ---------------------------------------------------------------- dumped requests


def dump(folder, llama, rows, *, layers_first=False):
    """Write what a server would: token ids and the states of every block, one file a request."""
    tokenizer = tiny.tokenizer()
    for code, texts in rows.items():
        (folder / code).mkdir(parents=True)
        for i, text in enumerate(texts):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                hidden = llama(ids, output_hidden_states=True).hidden_states[1:3]
            stacked = torch.stack([h[0] for h in hidden], dim=0 if layers_first else 1)
            save_torch(
                {"token_ids": ids[0], "hidden_states": stacked.contiguous()},
                folder / code / f"cmpl-{i}-0.safetensors",
            )
    return tokenizer


ROWS = {
    "en": [f"row number {i} of the text" + " and more" * (i % 4) for i in range(11)],
    "sw": [f"mstari {i} wa maandishi" + " na zaidi" * (i % 3) for i in range(11)],
}


@pytest.mark.parametrize("layers_first", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "weighted"])
def test_dumped_requests_give_what_a_probe_gives(tmp_path, llama, layers_first, pooling):
    tokenizer = dump(tmp_path, llama, ROWS, layers_first=layers_first)
    read = read_states(tmp_path, sites=["block.0", "block.1"], pooling=pooling, ignore_tokens=[1])
    for code, rows in ROWS.items():
        kept = capture(llama, tokenizer, rows, pooling=pooling, keep_states=True).states
        for site in ("block.0", "block.1"):
            np.testing.assert_allclose(read.states[site][code], kept[site], rtol=1e-4, atol=1e-4)
    assert read.warnings == ()
    if pooling == "mean":
        warned = read_states(tmp_path, sites=["block.0", "block.1"]).warnings
        assert len(warned) == 1 and "--ignore-tokens 1" in warned[0]


def test_dumps_that_do_not_tell_their_axes(tmp_path):
    x = RNG.normal(size=(3, 3, D)).astype(np.float32)
    for code in ("en", "sw"):
        (tmp_path / code).mkdir()
        for i in range(2):
            tensors = {"token_ids": np.array([5, 6, 7]), "hidden_states": x + i}
            save_file(tensors, tmp_path / code / f"{i}.safetensors")
    sites = ["block.0", "block.1", "block.2"]
    with pytest.raises(InputError, match="as many tokens as layers"):
        read_states(tmp_path, sites=sites)
    first = read_states(tmp_path, sites=sites, tokens_first=True).states["block.1"]["en"]
    mask = np.ones((1, 3), bool)
    np.testing.assert_allclose(first[0], pool(x[None, :, 1].copy(), mask, mode="mean")[0])
    with pytest.raises(InputError, match="no token is left to pool"):
        read_states(tmp_path, sites=sites, tokens_first=True, ignore_tokens=[5, 6, 7])
    with pytest.raises(InputError, match="name each with --sites"):
        read_states(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hidden_states": np.zeros((4, 2, D), np.float32)}, "expected token_ids and hidden"),
        ({"token_ids": np.arange(5), "hidden_states": np.zeros((4, 2, D), np.float32)},
         r"token_ids \(5,\) and hidden_states \(4, 2, 8\)"),
        ({"token_ids": np.arange(4), "hidden_states": np.zeros((4, 3, D), np.float32)},
         "for 4 tokens and 2 site"),
        ({"token_ids": np.arange(4), "hidden_states": np.full((4, 2, 32), np.nan, np.float32)},
         "is not finite"),
        ({"token_ids": np.arange(4), "hidden_states": np.zeros((4, 2, 3), np.float32)},
         "width 3, expected 32 as before"),
    ],
)  # fmt: skip
def test_damaged_dumps(tmp_path, llama, tensors, message):
    dump(tmp_path, llama, ROWS)
    save_file(tensors, tmp_path / "sw" / "cmpl-5-0.safetensors")
    with pytest.raises(InputError, match=message):
        read_states(tmp_path, sites=["block.0", "block.1"])


# ---------------------------------------------------------------- bad folders


def test_bad_folders(tmp_path, states):
    with pytest.raises(InputError, match="do not exist"):
        read_states(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no states of a language .* \(it has: nothing\)"):
        read_states(tmp_path)
    options = write_npy(tmp_path, states)
    with pytest.raises(InputError, match=r"holds 3 site.s. without names"):
        read_states(tmp_path)
    with pytest.raises(ShapeError, match="but 1 sites are named"):
        read_states(tmp_path, sites=["final"])
    with pytest.raises(InputError, match=r"site 'layer.1': expected names such as block.7"):
        read_states(tmp_path, sites=["layer.1"])
    with pytest.raises(InputError, match="no states of tr; it has: eng_Latn, spa_Latn, swh_Latn"):
        read_states(tmp_path, languages=["en", "tr"], **options)
    np.save(tmp_path / "sw.npy", states["sw"][:-1])
    with pytest.raises(InputError, match="unequal numbers of rows: en 12, es 12, sw 11"):
        read_states(tmp_path, **options)
    assert len(read_states(tmp_path, parallel=False, **options).states["final"]["sw"]) == 11
    (tmp_path / "sw.npy").write_bytes((tmp_path / "es.npy").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"sw.npy: cannot be read as .npy"):
        read_states(tmp_path, **options)
    np.save(tmp_path / "sw.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"sw.npy: cannot be read as .npy"):
        read_states(tmp_path, **options)
    shutil.copy(tmp_path / "es.npy", tmp_path / "es.safetensors")
    with pytest.raises(InputError, match=r"has es.npy and es.safetensors for es; keep one"):
        read_states(tmp_path, **options)
    (tmp_path / "es.npy").unlink()
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_states(tmp_path, **options)


# ---------------------------------------------------------------- command


def test_probe_from_states(tmp_path, states):
    (tmp_path / "states").mkdir()
    write_safetensors_each(tmp_path / "states", states)
    out = tmp_path / "space.safetensors"
    done = run("probe", "--states", tmp_path / "states", "--pivot", "en", "--langs", "en,sw",
               "--sites", "block.1,final", "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["sites"] == ["block.1", "final"] and data["languages"] == ["eng_Latn", "swh_Latn"]
    made = Space.load(out)
    np.testing.assert_allclose(made.means("final")[1], states["sw"][:, 2].mean(0))
    assert made.about.model == {} and made.about.typed == {"eng_Latn": "en", "swh_Latn": "sw"}
    for arguments, words in [
        (("--model", "m"), "leave out --model and --data"),
        (("--pivot", "fr"), "fra_Latn is not among"),
        (("--ignore-tokens", "x"), "--ignore-tokens: 0: got 'x', expected a valid integer"),
        (("--sites", "block.9"), "no site block.9"),
    ]:
        bad = run("probe", "--states", tmp_path / "states", "--out", tmp_path / "b.safetensors",
                  *arguments)  # fmt: skip
        assert bad.exit_code == 2 and words in bad.stderr, bad.stderr
    assert "give --model and --data, or --states" in run("probe", "--out", "x").stderr
    assert not (tmp_path / "b.safetensors").exists()
