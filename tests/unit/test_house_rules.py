"""House rules of the package: layers in order, no import circle, light to import, plain names."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lens

PACKAGE = Path(lens.__file__).parent
# Lowest first; a module imports from its own row or from rows above it in this list.
LAYERS = (
    {"_core", "errors"},
    {"arrays"},
    {"utils"},
    {"pooling", "stats", "subspace", "losses", "metrics", "neurons", "weights", "resample"},
    {"torch_ops"},  # some of the numerics in torch; `arrays.anywhere` finds them by name
    {"models"},
    {"data"},
    {"steering"},
    {"space"},
    {"training"},
    {"merging"},
    {"evaluation"},
    {"analysis"},
    {"experiments"},
    {"planning"},  # of any job, so above all of them
    {"report"},
    {"demo", "cli", "__main__"},
    {"__init__"},  # the front door
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Imported by `lens --help`, or usable without torch.
TORCH_FREE = {"__init__", "data", "cli", "merging"}
TORCH_FREE |= {name for name, level in LEVEL.items() if level < LEVEL["torch_ops"]}
# Words of the field that happen to end in -ing.
FIELD_WORDS = {"training", "steering", "merging", "planning", "pooling", "loading", "batching"}
FIELD_WORDS |= {"tuning", "hashing"}
# Still to be opened; nothing may be added.
CIRCLES: set[str] = set()
TWICE: set[str] = {"_Frozen"}


@dataclass(frozen=True)
class Import:
    """One import: the module it names, its line, and whether it waits for a call."""

    module: str
    line: int
    deferred: bool


def module_of(path: Path) -> str:
    parts = ("lens", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_of(path): path for path in FILES}


def stub_of(package: str) -> dict[str, str]:
    """Public names of a package's face, and the modules that hold them."""
    path = MODULES[package].with_suffix(".pyi")
    if not path.exists():
        return {}
    return {
        alias.name: f"{package}.{node.module}" if node.module else f"{package}.{alias.name}"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


STUBS = {name: stub_of(name) for name, path in MODULES.items() if path.name == "__init__.py"}


def target(module: str, name: str) -> str:
    """Module that ``from module import name`` reads."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    return STUBS.get(module, {}).get(name, module)


def imports_of(path: Path) -> list[Import]:
    """List what a file imports, imports for type checkers included."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [target(module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lens":
            names = [target("lens", node.attr)]
        for name in names:
            yield Import(name, getattr(node, "lineno", 0), deferred)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return list(walk(tree, False))


GRAPH = {
    module: {item.module for item in imports_of(path) if item.module in MODULES} - {"lens", module}
    for module, path in MODULES.items()
}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one node."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for item in graph.get(stack.pop(), set()) - seen:
                seen.add(item)
                stack.append(item)
        return seen

    reached = {node: reach(node) for node in graph}
    groups = {
        tuple(sorted({b for b in reached[a] if a in reached.get(b, set())}))
        for a in graph
        if a in reached[a]
    }
    return sorted(list(group) for group in groups)


def test_no_import_circle_between_files() -> None:
    found = [group for group in circles(GRAPH) if not set(group) <= CIRCLES]
    assert found == []


def test_no_import_circle_between_folders() -> None:
    folders: dict[str, set[str]] = defaultdict(set)
    for module, imported in GRAPH.items():
        here = ".".join(module.split(".")[:2])
        there = {".".join(name.split(".")[:2]) for name in imported}
        folders[here] |= there - {here}
    assert [group for group in circles(folders) if not set(group) <= CIRCLES] == []


def top_level(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_lower_layers_do_not_import_upper_ones(path: Path) -> None:
    here = top_level(path)
    assert here in LEVEL, f"{path.name}: give the new module a row in LAYERS"
    for item in imports_of(path):
        if not item.module.startswith("lens.") or here == "__init__":
            continue
        there = item.module.split(".")[1]
        where = f"{path.relative_to(PACKAGE)}:{item.line}"
        assert there in LEVEL, f"{where} imports {item.module}: name the module that is meant"
        upward = LEVEL[there] > LEVEL[here]
        assert not upward or f"{here} -> {there}" in CIRCLES, f"{where} imports {item.module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_torch_is_not_imported_at_the_top_of_light_modules(path: Path) -> None:
    heavy = ("torch", "transformers", "peft", "accelerate")
    for item in imports_of(path):
        if top_level(path) in TORCH_FREE and item.module.split(".")[0] in heavy:
            assert item.deferred, f"{path.relative_to(PACKAGE)}:{item.line}: {item.module}"


def test_no_class_name_is_used_twice() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert {n: where for n, where in homes.items() if len(where) > 1 and n not in TWICE} == {}


def test_modules_are_named_by_nouns() -> None:
    stems = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert {stem for stem in stems if stem.endswith("ing")} - FIELD_WORDS == set()


def test_public_faces_are_complete() -> None:
    for package, names in STUBS.items():
        for name, module in names.items():
            assert module in MODULES, f"{package}: {name} is said to be in {module}"


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
        "from lens.cli.app import main\n"
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
    if path.name != "blas.c":
        assert not headers & {"cblas.h", "lapacke.h", "lapack.h"}, "BLAS names belong in blas.c"
    if C_GLUE.fullmatch(path.name):
        return
    assert not {h for h in headers if h.startswith(("Python.h", "numpy/"))}
    forbidden = r"\b(malloc|calloc|realloc|free|f?printf|puts|getenv|exit|abort|assert)\s*\("
    assert re.findall(forbidden, code) == []


# Functions that may take more parameters, each with its reason.
WIDE: dict[str, str] = {}
LIMIT = 8


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters of a function, ``self`` and ``cls`` left out."""
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    names = [arg.arg for arg in args]
    extra = (node.args.vararg is not None) + (node.args.kwarg is not None)
    return len(names) - (bool(names) and names[0] in ("self", "cls")) + extra


def wide_functions() -> list[str]:
    """Name the functions with more than 8 parameters."""
    found = []
    for module, path in sorted(MODULES.items()):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if (count := parameters(node)) > LIMIT:
                    found.append(f"{module}.{node.name} ({count})")
    return found


def test_functions_take_at_most_8_parameters() -> None:
    """Options belong in the settings model of the verb: see `lens.utils.settings`."""
    found = {name.partition(" ")[0] for name in wide_functions()}
    assert found - WIDE.keys() == set()
    assert len(WIDE) <= 6 and WIDE.keys() <= found, "a reason is left that nothing needs"


def test_options_are_declared_in_settings_models_only() -> None:
    """One home for the making of options, so that a new one is a field and nothing else."""
    makers = re.compile(r"\bclick\.(option|argument|Option|Argument)\b")
    homes = {path.name for path in FILES if makers.search(path.read_text(encoding="utf-8"))}
    assert homes == {"options.py"}


def test_every_schema_belongs_to_one_format():
    """A schema such as lens.run/1 is written down once: two formats cannot share it."""
    found = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"lens\.\w+/\d+", str(node.value)):
                found[node.value.rpartition("/")[0]].append(f"{module_of(path)}:{node.lineno}")
    assert len(found) > 5
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
