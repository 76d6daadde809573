"""Bars appear on a terminal and in a notebook, and nowhere else."""

import io
import sys
from types import SimpleNamespace

import pytest

from lens.utils import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def notebook(monkeypatch: pytest.MonkeyPatch, config: dict) -> None:
    shell = SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


@pytest.fixture(autouse=True)
def not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_quiet", False)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)


def test_silent_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    items = [1, 2]
    assert not progress.shown() and progress.progress(items, "Reading") is items
    with progress.bar(2, "Reading") as bar:
        bar.update(2)
    assert sys.stderr.getvalue() == ""


def test_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.shown()
    assert list(progress.progress([1, 2], "Reading", unit="row")) == [1, 2]
    assert "Reading" in sys.stderr.getvalue()


@pytest.mark.filterwarnings("ignore:IProgress not found")
def test_shown_in_a_notebook_but_not_in_a_plain_ipython(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook(monkeypatch, {})
    assert not progress.shown()
    notebook(monkeypatch, {"IPKernelApp": {}})
    assert progress.shown()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not progress.shown()


def test_quiet_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    notebook(monkeypatch, {"IPKernelApp": {}})
    progress.set_quiet(True)
    assert not progress.shown()
    assert list(progress.progress([1], "Reading")) == [1]
    progress.say("nothing")
    assert sys.stderr.getvalue() == ""


def test_a_bar_can_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(2, "Reading", unit="row", drawn=True) as bar:
        bar.update(2)
    assert "2/2" in sys.stderr.getvalue()
