"""Ways to make training data from prompts alone, and to answer without training.

They stand beside the losses of `lens.lsm`: self-translation and question translation make answers
for `lens.train`, `translate_first` answers by way of the pivot.
"""

from lens.recipes.question_translation import Exercises, question_translation
from lens.recipes.self_translation import SelfAnswers, self_translate
from lens.recipes.translate_first import translate_first
from lens.recipes.translating import Translator

__all__ = [
    "Exercises",
    "SelfAnswers",
    "Translator",
    "question_translation",
    "self_translate",
    "translate_first",
]
