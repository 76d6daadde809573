"""Load a study's script, which is no part of the package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "studies"


def load_study(name: str) -> ModuleType:
    """Import ``docs/studies/NAME.py``, with the modules that lie beside it."""
    path = (STUDIES / name).with_suffix(".py")
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
