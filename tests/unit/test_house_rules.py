"""Rules that keep the package light to import and its layers in order."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lens

PACKAGE = Path(lens.__file__).parent
# Lowest first; a module imports its own row or rows above it in this list.
LAYERS = (
    {"_lazy", "configs", "errors", "interrupting", "io", "progress", "sizes", "stored"},
    {"_core"},
    {"arrays"},
    {"checksums", "stats", "subspace", "losses", "metrics", "neurons", "weights", "resample"},
    {"tensors"},  # the numerics in torch; `arrays.twin` finds them by name
    {"data", "models"},
    {"space", "probing"},
    {"lsm", "steering", "maec"},
    {"evaluate"},
    {"checking"},
    {"report"},
    {"inspection"},
    {"recipes"},
    {"sweeps"},
    {"planning"},  # of any job, so above all of them
    {"world", "cli", "__main__"},
    {"__init__"},  # the front door
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# `Space.steer` is sugar: the import happens inside the method, when it is called.
SUGAR = {("space", "steering")}
# Imported by `lens --help`, or usable without torch.
TORCH_FREE = {"__init__", "data", "checking", "cli", "maec"}
TORCH_FREE |= {name for name, level in LEVEL.items() if level < LEVEL["tensors"]}


@dataclass(frozen=True)
class Import:
    """One import statement: who, what, where, and whether it waits for a call."""

    importer: str
    imported: str
    line: int
    deferred: bool


def top_level(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[Import]:
    """List what a file imports, except for type checkers only."""
    package = ("lens", *path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # After `import lens`, what is taken from it counts; a public name as the module it lives in.
    taken = {
        lens._NAMES.get(node.attr, f"lens.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lens"
    }

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name != "lens"]
            names += sorted(taken) if len(names) < len(node.names) else []
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [module]
            if module == "lens":
                names = [lens._NAMES.get(a.name, f"lens.{a.name}") for a in node.names]
        for name in names:
            yield Import(top_level(path), name, getattr(node, "lineno", 0), deferred)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return list(walk(tree, False))


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_lower_layers_do_not_import_upper_ones(path: Path) -> None:
    assert top_level(path) in LEVEL, f"{path.name}: give the new module a row in LAYERS"
    for found in imports_of(path):
        if not found.imported.startswith("lens.") or found.imported == "lens.__version__":
            continue
        target = found.imported.split(".")[1]
        where = f"{path.relative_to(PACKAGE)}:{found.line}"
        assert target in LEVEL, f"{where} imports {found.imported}: name the module that is meant"
        if found.deferred and (found.importer, target) in SUGAR:
            continue
        assert LEVEL[target] <= LEVEL[found.importer], f"{where} imports upwards: {found.imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_torch_is_not_imported_at_the_top_of_light_modules(path: Path) -> None:
    heavy = ("torch", "transformers", "peft", "accelerate")
    for found in imports_of(path):
        if top_level(path) in TORCH_FREE and found.imported.split(".")[0] in heavy:
            assert found.deferred, f"{path.relative_to(PACKAGE)}:{found.line}: {found.imported}"


def modules_after(code: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter has loaded after ``code``."""
    report = "\nimport json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code + report], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_import_lens_loads_nothing_heavy() -> None:
    loaded = modules_after("import lens")
    heavy = {"numpy", "torch", "pydantic", "transformers", "scipy", "matplotlib", "yaml", "rich"}
    assert loaded & heavy == set()


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['lens', '--help']\n"
        "from lens.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
    )
    assert modules_after(code) & {"torch", "transformers", "matplotlib", "scipy"} == set()


C_FILES = sorted((PACKAGE.parent / "csrc").glob("*.[ch]"))
C_GLUE = re.compile(r"convert\.[ch]|module\.c|py_.*")


@pytest.mark.skipif(not C_FILES, reason="not in a checkout")
@pytest.mark.parametrize("path", C_FILES, ids=lambda p: p.name)
def test_c_core_keeps_to_itself(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.S)
    headers = set(re.findall(r'#\s*include\s*[<"]([^>"]+)', text))
    if path.name != "blas.h":
        assert not headers & {"cblas.h", "lapacke.h", "lapack.h"}, "BLAS names belong in blas.h"
    if C_GLUE.fullmatch(path.name):
        return
    assert not {h for h in headers if h.startswith(("Python.h", "numpy/"))}
    forbidden = r"\b(malloc|calloc|realloc|free|f?printf|puts|getenv|exit|abort|assert)\s*\("
    assert re.findall(forbidden, code) == []
