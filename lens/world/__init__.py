"""A small world with people, facts and seven languages, and three language models trained on it.

Everything here is generated from hand-written lexicons and recorded seeds. `questions` and
`text` need neither NumPy nor torch; `load` gives ordinary Hugging Face models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lens.world.languages import LANGUAGES, PIVOT
from lens.world.questions import Question, is_correct, questions, text

if TYPE_CHECKING:
    from lens.world.checkpoints import CHECKPOINTS, checkpoint_path, load
    from lens.world.training import train

__all__ = [
    "CHECKPOINTS",
    "LANGUAGES",
    "PIVOT",
    "Question",
    "checkpoint_path",
    "is_correct",
    "load",
    "questions",
    "text",
    "train",
]

_LAZY = {
    "CHECKPOINTS": "lens.world.checkpoints",
    "checkpoint_path": "lens.world.checkpoints",
    "load": "lens.world.checkpoints",
    "train": "lens.world.training",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch the first time it is asked for (PEP 562)."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lens.world' has no attribute '{name}'")
