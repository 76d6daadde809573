"""Settings and fixtures for every test."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Tests never reach for the network, and tokenizers must not warn when a test forks.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests of equal bits need equal threads; the models are too small to gain from more than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def shared_folder() -> Path:
    """Return where the development data would be: LENS_SHARED, or beside the checkout."""
    return Path(os.environ.get("LENS_SHARED") or ROOT.parent / "shared")


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the development data, for tests marked ``needs_shared``."""
    return shared_folder()


@pytest.fixture(scope="session")
def tokenizer():
    """Tokenizer of the tiny models."""
    from tests.helpers import tiny

    return tiny.tokenizer()


@pytest.fixture(scope="module")
def llama():
    """A tiny Llama, checked already: tests that count forward passes must not see the check's."""
    from lens.models.architecture import locate
    from tests.helpers import tiny

    model = tiny.model("llama")
    locate(model)
    return model


@pytest.fixture(autouse=True)
def not_quiet() -> None:
    """Undo what a verb called with --quiet in another test has left behind."""
    from lens.utils.progress import set_quiet

    set_quiet(False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs development data where there is none."""
    if item.get_closest_marker("needs_shared") and not (shared_folder() / "data").is_dir():
        pytest.skip("no development data: set LENS_SHARED to its folder")
