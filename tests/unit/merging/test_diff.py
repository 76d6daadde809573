"""The delta diff against NumPy over whole tensors."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from lens.cli.app import main
from lens.errors import InputError
from lens.merging import tensors as cutting
from lens.merging.diff import weight_diff
from lens.report.weight_diff import render_weight_diff
from tests.helpers import maec_files as files


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "SLICE", 64)
    base = files.checkpoint(tmp_path / "base")
    return [base, *(files.checkpoint(tmp_path / f"m{i}", seed=i, near=base) for i in (1, 2))]


def effective_rank(x):
    squares = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
    return squares.sum() ** 2 / (squares**2).sum()


def test_against_whole_tensors(models):
    found = weight_diff(models[0], models[1:])
    base, *others = [files.read(m) for m in models]
    assert [t.name for t in found.tensors] == list(files.SHAPES)
    for tensor in found.tensors:
        theta, name = base[tensor.name].astype(np.float64), tensor.name
        deltas = [(o[name] - base[name]).astype(np.float64) for o in others]
        assert tensor.norm == pytest.approx(np.linalg.norm(theta))
        for change, x in zip(tensor.changes, deltas, strict=True):
            assert change.relative == pytest.approx(np.linalg.norm(x) / np.linalg.norm(theta))
            assert change.share == np.count_nonzero(x) / x.size
            assert change.largest == np.abs(x).max()
            rms = np.sqrt((x**2).mean())
            low, high = (np.count_nonzero(np.abs(x) > f * 6 * rms) for f in (1.01, 0.99))
            assert low <= change.outliers <= high
            if x.ndim == 1:
                assert change.effective_rank is None and change.rows == ()
                continue
            assert change.effective_rank == pytest.approx(effective_rank(x), rel=1e-4)
            rows = np.linalg.norm(x, axis=1) / np.linalg.norm(theta, axis=1)
            np.testing.assert_allclose(
                change.rows, np.quantile(rows, [0.05, 0.25, 0.5, 0.75, 0.95])
            )
            assert [k for k, _ in change.top_rows] == list(np.argsort(-rows)[:5])
        (pair,) = tensor.pairs
        x, y = (d.ravel() for d in deltas)
        assert pair.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-6)
        both = (x != 0) & (y != 0)
        assert pair.same_sign == pytest.approx((np.sign(x) == np.sign(y))[both].mean())


@pytest.mark.parametrize("rank", [1, 8, 100])
def test_the_effective_rank_of_wide_matrices_is_estimated(tmp_path, rank):
    rng = np.random.default_rng(rank)
    change = rng.standard_normal((300, rank)) @ rng.standard_normal((rank, 200))
    for name, x in (("base", np.ones((300, 200))), ("other", 1 + change)):
        (tmp_path / name).mkdir()
        tensors = {"w": ("F32", x.astype(np.float32))}
        files.write_file(tmp_path / name / "model.safetensors", tensors)
    (tensor,) = weight_diff(tmp_path / "base", [tmp_path / "other"]).tensors
    want = effective_rank(change)
    assert tensor.changes[0].effective_rank == pytest.approx(want, rel=0.4 if rank == 1 else 0.25)


def test_nothing_changed(models):
    copy = files.checkpoint(models[0].parent / "copy")
    found = weight_diff(models[0], [copy, models[1]])
    for tensor in found.tensors:
        assert tensor.changes[0].relative == 0 and tensor.changes[0].outliers == 0
        assert tensor.changes[0].effective_rank is None and tensor.changes[0].top_rows == ()
        assert tensor.pairs[0].cosine is None and tensor.pairs[0].same_sign is None
    assert found.relative_by_block()[0][0] == 0


def test_the_page_and_the_table(models):
    page = render_weight_diff(weight_diff(models[0], models[1:]))
    assert page.count("<h2>") == 4 and "Cosine: m1 and m2" in page
    assert page.count("model.layers.2.mlp.up_proj.weight: cosine") == 1
    assert "http" not in page.replace("http-equiv", "")
    done = CliRunner().invoke(main, ["diff", *map(str, models)])
    assert done.exit_code == 0 and "cosine of m1 and m2" in done.output, done.output
    assert "outside" in done.output


def test_what_is_in_no_block_has_a_column_of_its_own(models):
    page = render_weight_diff(weight_diff(models[0], models[1:2]))
    row = page.split('<th scope="row">model.norm.weight</th>')[1].split("</tr>")[0]
    assert row.startswith("<td></td>" * 4) and row.count("title=") == 1
    assert '<th scope="col">3</th><th scope="col">–</th>' in page


def test_models_of_one_name_are_told_apart(models, tmp_path):
    again = shutil.copytree(models[1], tmp_path / "again" / models[1].name)
    page = render_weight_diff(weight_diff(models[0], [models[1], again]))
    assert f"Relative change: {again}" in page and f"Relative change: {models[1]}" in page


def test_command_line(models, tmp_path):
    for name in ("diff.html", "diff.json"):
        done = CliRunner().invoke(main, ["diff", *map(str, models), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "diff.json").read_text())
    assert len(kept["tensors"]) == len(files.SHAPES)
    done = CliRunner().invoke(main, ["diff", *map(str, models), "--out", str(tmp_path / "a.png")])
    assert done.exit_code == 2 and "ends in .html or .json" in done.output


def test_bad_input(models, tmp_path):
    with pytest.raises(InputError, match="is the base"):
        weight_diff(models[0], [models[0]])
    tensors = {n: x.copy() for n, x in files.read(models[1]).items()}
    tensors["model.norm.weight"][3] = np.nan
    raw = {n: ("BF16", files.raw_of(x, "BF16")) for n, x in tensors.items()}
    files.write_file(models[1] / "model.safetensors", raw)
    with pytest.raises(InputError, match=r"'model.norm.weight' of .*m1 holds nan at \[3\]"):
        weight_diff(models[0], models[1:])
