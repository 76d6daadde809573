"""The whole recipe of MAEC (arXiv 2410.07825): from corpora to a merged model.

`train` tunes a model on an ability or on plain text, all of it or key neurons only; `run` goes
through locate, train, extract and merge as one config says, and keeps every finished stage.
"""

from lens.recipes.maec.config import Recipe, Tuning, read_recipe
from lens.recipes.maec.corpora import Examples, examples, read_rows, read_text
from lens.recipes.maec.keys import Keys, read_keys
from lens.recipes.maec.running import RunResult, Stage, run
from lens.recipes.maec.training import Tuned, train

__all__ = [
    "Examples",
    "Keys",
    "Recipe",
    "RunResult",
    "Stage",
    "Tuned",
    "Tuning",
    "examples",
    "read_keys",
    "read_recipe",
    "read_rows",
    "read_text",
    "run",
    "train",
]
