"""What this machine and this installation have; read-only, nothing is downloaded."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lens import __version__

# package, extra that brings it, what it is for
_PACKAGES = (
    ("numpy", "", "arrays"),
    ("pydantic", "", "configs"),
    ("safetensors", "", "files"),
    ("torch", "hf", "running models"),
    ("transformers", "hf", "running models"),
    ("tokenizers", "hf", "running models"),
    ("accelerate", "hf", "models over several devices"),
    ("peft", "hf", "adapters"),
    ("lingua-language-detector", "langid", "language identification"),
    ("py3langid", "langid", "language identification"),
    ("matplotlib", "report", "figures"),
    ("jinja2", "report", "reports"),
)


@dataclass(frozen=True, slots=True)
class Package:
    """A package with its version, or ``None`` where it is not installed."""

    name: str
    version: str | None
    extra: str
    purpose: str


@dataclass(frozen=True, slots=True)
class SystemProblem:
    """Something missing or broken, and the command that fixes it."""

    text: str
    fix: str


@dataclass(frozen=True, slots=True)
class SystemFindings:
    """Facts about the machine, packages, and what to do."""

    facts: dict[str, str]
    packages: tuple[Package, ...]
    problems: tuple[SystemProblem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def examine() -> SystemFindings:
    """Look at the installation and the machine.

    Returns
    -------
    SystemFindings
        Facts for people to read, versions, and one fix per thing missing.
    """
    packages = tuple(Package(n, _version(n), extra, why) for n, extra, why in _PACKAGES)
    problems = []
    for extra in dict.fromkeys(p.extra for p in packages):
        absent = [p.name for p in packages if p.extra == extra and p.version is None]
        if absent:
            name = f"lens-lm[{extra}]" if extra else "lens-lm"
            problems.append(SystemProblem(f"missing: {', '.join(absent)}", f'pip install "{name}"'))
    facts = {
        "lens": __version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "CPU": f"{os.cpu_count()} cores, {_cpu()}",
        "memory": _memory(),
        "GPU": _gpu(packages),
    }
    core, problem = _core()
    facts.update(core)
    if problem:
        problems.insert(0, problem)
    return SystemFindings(facts, packages, tuple(problems))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _core() -> tuple[dict[str, str], SystemProblem | None]:
    """Ask the C core what it was built with, as far as it can say."""
    try:
        from lens import _core
    except ImportError as error:
        fix = "pip install --force-reinstall --no-deps lens-lm"
        return {"C core": "not usable"}, SystemProblem(f"the C core cannot be loaded: {error}", fix)
    facts = {"C core": "loaded"}
    for label, name in (("BLAS", "blas_config"), ("instruction set", "isa")):
        asked = getattr(_core, name, None)
        if asked is not None:
            facts[label] = str(asked() if callable(asked) else asked)
    return facts, None


def _cpu() -> str:
    """Vector instructions that matter here, where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    flags = set(next((li for li in text.splitlines() if li.startswith("flags")), "").split())
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16")
    return " ".join([platform.machine(), *(flag for flag in wanted if flag in flags)])


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE")
        total = size * os.sysconf("SC_PHYS_PAGES") / 2**30
        free = size * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return "unknown"
    return f"{total:.1f} GiB, {free:.1f} GiB free"


def _gpu(packages: tuple[Package, ...]) -> str:
    if find_spec("torch") is None:
        return "unknown (torch is not installed)"
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return "Apple MPS" if torch.backends.mps.is_available() else "none that torch can use"
