"""Measure a model: fidelity, in-language accuracy and pivot drift, each with n and an interval.

``generate`` answers prompts, ``identifier`` names the language of an answer, ``outcomes`` and
``score`` turn both into numbers with 95 % intervals, ``pivot_kl`` says how far the pivot moved.
"""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.evaluate.drift import PivotDrift as PivotDrift
    from lens.evaluate.drift import pivot_kl as pivot_kl
    from lens.evaluate.foreign import can_judge as can_judge
    from lens.evaluate.foreign import foreign_languages as foreign_languages
    from lens.evaluate.foreign import judge_version as judge_version
    from lens.evaluate.generation import generate as generate
    from lens.evaluate.generation import strip_thinking as strip_thinking
    from lens.evaluate.identify import Identifier as Identifier
    from lens.evaluate.identify import agreement as agreement
    from lens.evaluate.identify import identifier as identifier
    from lens.evaluate.intervals import McNemar as McNemar
    from lens.evaluate.intervals import PairedDifference as PairedDifference
    from lens.evaluate.intervals import mcnemar as mcnemar
    from lens.evaluate.intervals import mean_interval as mean_interval
    from lens.evaluate.intervals import paired_bootstrap as paired_bootstrap
    from lens.evaluate.intervals import wilson as wilson
    from lens.evaluate.refusals import RefusalDrift as RefusalDrift
    from lens.evaluate.refusals import refusal_drift as refusal_drift
    from lens.evaluate.rows import AVERAGE as AVERAGE
    from lens.evaluate.rows import METRICS as METRICS
    from lens.evaluate.rows import ResultRow as ResultRow
    from lens.evaluate.rows import read_rows as read_rows
    from lens.evaluate.rows import rows_from_json as rows_from_json
    from lens.evaluate.rows import rows_to_json as rows_to_json
    from lens.evaluate.rows import write_rows as write_rows
    from lens.evaluate.scoring import Comparison as Comparison
    from lens.evaluate.scoring import Outcomes as Outcomes
    from lens.evaluate.scoring import compare as compare
    from lens.evaluate.scoring import outcomes as outcomes
    from lens.evaluate.scoring import score as score
    from lens.evaluate.suite import Evaluation as Evaluation
    from lens.evaluate.suite import evaluate as evaluate

_NAMES = {
    "AVERAGE": "rows",
    "METRICS": "rows",
    "ResultRow": "rows",
    "read_rows": "rows",
    "rows_from_json": "rows",
    "rows_to_json": "rows",
    "write_rows": "rows",
    "McNemar": "intervals",
    "PairedDifference": "intervals",
    "mcnemar": "intervals",
    "mean_interval": "intervals",
    "paired_bootstrap": "intervals",
    "wilson": "intervals",
    "Identifier": "identify",
    "agreement": "identify",
    "identifier": "identify",
    "can_judge": "foreign",
    "foreign_languages": "foreign",
    "judge_version": "foreign",
    "generate": "generation",
    "strip_thinking": "generation",
    "Comparison": "scoring",
    "Outcomes": "scoring",
    "compare": "scoring",
    "outcomes": "scoring",
    "score": "scoring",
    "PivotDrift": "drift",
    "pivot_kl": "drift",
    "RefusalDrift": "refusals",
    "refusal_drift": "refusals",
    "Evaluation": "suite",
    "evaluate": "suite",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
