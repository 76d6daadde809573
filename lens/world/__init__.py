"""A small world with people, facts and seven languages, and three language models trained on it.

Everything here is generated from hand-written lexicons and recorded seeds. `questions` and
`text` need neither NumPy nor torch; `load` gives ordinary Hugging Face models.
"""

from typing import TYPE_CHECKING

from lens._lazy import lazy
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

__getattr__ = lazy(
    __name__,
    {
        "CHECKPOINTS": "checkpoints",
        "checkpoint_path": "checkpoints",
        "load": "checkpoints",
        "train": "training",
    },
)[0]
