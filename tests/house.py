"""Measure the package as a place to work in: ``python -m tests.house``.

Prints one row per figure: files and lines, import circles (imports for type checkers and inside
functions included) and imports of upper layers, functions with more than 8 parameters, class names
used twice, modules named by a gerund, ``# fmt: skip`` comments. The same rules are tests in
``tests/unit/test_house_rules.py``.
"""

import ast
from collections import defaultdict

from tests.unit import test_house_rules as rules


def class_names() -> dict[str, list[str]]:
    """Where every class name is defined."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in rules.MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    return homes


def upward() -> list[str]:
    """Imports of a module in an upper layer."""
    found = []
    for path in rules.FILES:
        here = rules.top_level(path)
        for item in rules.imports_of(path):
            if item.module.startswith("lens.") and here != "__init__":
                there = item.module.split(".")[1]
                if rules.LEVEL.get(there, 0) > rules.LEVEL[here]:
                    found.append(f"{path.relative_to(rules.PACKAGE)}:{item.line}")
    return found


def main() -> None:
    """Print the figures."""
    texts = [path.read_text(encoding="utf-8") for path in rules.FILES]
    folders: dict[str, set[str]] = defaultdict(set)
    for module, imported in rules.GRAPH.items():
        here = ".".join(module.split(".")[:2])
        folders[here] |= {".".join(name.split(".")[:2]) for name in imported} - {here}
    wide = rules.wide_functions()
    twice = [name for name, where in class_names().items() if len(where) > 1]
    stems = {path.stem for path in rules.FILES} | {path.parent.name for path in rules.FILES}
    gerunds = {stem for stem in stems if stem.endswith("ing")} - rules.FIELD_WORDS
    rows: list[tuple[str, int, int]] = [
        ("Python files in lens/", len(texts), 160),
        ("lines in them", sum(len(text.splitlines()) for text in texts), 34_000),
        ("import circles between files", len(rules.circles(rules.GRAPH)), 0),
        ("import circles between folders", len(rules.circles(folders)), 0),
        ("imports of an upper layer", len(upward()), 0),
        ("functions with more than 8 parameters", len(wide), 6),
        ("class names used twice", len(twice), 0),
        ("modules named by a gerund", len(gerunds), 0),
        ("# fmt: skip", sum(text.count("# fmt: skip") for text in texts), 20),
    ]
    print(f"{'figure':<42} {'value':>7}   goal  met")
    for name, value, goal in rows:
        print(f"{name:<42} {value:>7,} {goal:>6,}  {'yes' if value <= goal else 'NO'}")
    for name in (*wide, *twice, *sorted(gerunds)):
        print(f"  {name}")


if __name__ == "__main__":
    main()
