"""Ways to make training data from prompts alone, beside the losses of `lens.lsm`."""

from lens.recipes.self_translation import SelfAnswers, self_translate

__all__ = ["SelfAnswers", "self_translate"]
