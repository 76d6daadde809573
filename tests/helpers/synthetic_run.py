"""A made-up run record for tests of the report and the command line; no number here is measured."""

import numpy as np

from lens.evaluation.accuracy import compare, outcomes
from lens.evaluation.results import ResultRow
from lens.report.record import Example, GridCell, LossCurve, RunRecord, SpectrumCurve, System
from lens.stats import wilson

LANGUAGES = ("eng_Latn", "spa_Latn", "ind_Latn", "swh_Latn", "tur_Latn", "rus_Cyrl", "zho_Hans")
SYSTEMS = {
    "unchanged": (0.34, 0.22, 0.0),
    "prompt": (0.41, 0.25, 0.004),
    "diffmean": (0.83, 0.36, 0.21),
    "random": (0.37, 0.19, 0.03),
    "lens-paper": (0.86, 0.28, 0.11),
    "lens": (0.975, 0.61, 0.012),
    "sft-same-budget": (0.99, 0.70, 0.02),
    "possible": (1.0, 0.74, 0.35),
}
NOTES = (
    System("unchanged", "Unchanged", "The chat model tuned on English only, as it is."),
    System("prompt", "Prompt only", "The question is preceded by “Answer in Spanish.”"),
    System("diffmean", "DiffMean steering", "The mean difference is added to the states."),
    System("random", "Random subspace", "Same rank and norm, random directions."),
    System("lens-paper", "Lens, published losses", "Last two blocks, losses of arXiv 2410.04407."),
    System("lens", "Lens", "Last two blocks, our losses, λ per language from validation."),
    System("sft-same-budget", "Fine-tuning, same budget", "The same blocks, with real answers."),
    System("possible", "Mixed-language tuning", "97 % English, 3 % other: what is possible."),
)


def make_record(n: int = 500) -> RunRecord:
    """A record with every part filled, the same on every call."""
    rng = np.random.default_rng(0)
    rows = []
    for system, (fidelity, accuracy, kl) in SYSTEMS.items():
        for metric, centre in (
            ("fidelity", fidelity),
            ("accuracy_in_language", accuracy),
            ("accuracy_any", min(1.0, accuracy + 0.12)),
        ):
            shares = []
            for language in LANGUAGES:
                pivot = language == LANGUAGES[0]
                share = 0.985 if pivot else np.clip(centre + rng.normal(0, 0.07), 0, 1)
                k = round(share * n)
                shares.append(k / n)
                rows.append(ResultRow(system, language, "test", metric, k / n, n, *wilson(k, n), 0))
            mean = float(np.mean(shares[1:]))
            rows.append(
                ResultRow(
                    system,
                    "mean",
                    "test",
                    metric,
                    mean,
                    6 * n,
                    mean - 0.014,
                    min(1, mean + 0.014),
                    0,
                )
            )
        rows.append(ResultRow(system, "eng_Latn", "test", "kl", kl, n, kl * 0.9, kl * 1.1, 0))
    return RunRecord(
        title="Lens on the sample world: from answers in English to answers in the language asked",
        rows=tuple(rows),
        spectra=_spectra(),
        losses=_losses(rng),
        grid=_grid(),
        examples=_examples(),
        about={
            "command": "lens demo --limit 500 --seed 0",
            "seed": 0,
            "versions": {"lens-lm": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0"},
            "sha256": {"base": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
            "identifier": "lingua 2.1.1",
            "languages": list(LANGUAGES),
        },
        comparisons=_comparisons(rng, n),
        systems=NOTES,
    )


def _spectra() -> tuple[SpectrumCurve, ...]:
    sites = [*(f"block.{i}" for i in range(8)), "final"]
    return tuple(
        SpectrumCurve(
            site,
            tuple(3.0 * (1 + i) * 0.62**k for k in range(6)),
            tuple(min(88.0, 6 + 9 * k + 3 * abs(i - 4)) for k in range(5)),
            5,
            "5 of 6 hold 95 % of the noise-corrected variance between languages",
        )
        for i, site in enumerate(sites)
    )


def _losses(rng: np.random.Generator) -> tuple[LossCurve, ...]:
    steps = tuple(range(1, 151))
    curves = []
    for name, top in (("separate", 2.4), ("align", 0.35), ("retain", 0.04)):
        noise = rng.normal(0, 0.02, len(steps))
        values = top * (np.exp(-np.array(steps) / 35) + 0.05 + noise)
        curves.append(LossCurve(name, steps, tuple(values.tolist())))
    return tuple(curves)


def _grid() -> tuple[GridCell, ...]:
    cells = []
    for i, language in enumerate(LANGUAGES[1:]):
        for strength in (0.5, 1.0, 1.5, 2.0, 3.0):
            accuracy = 0.62 - 0.16 * (strength - 1.2 - 0.1 * i) ** 2
            for metric, value in (
                ("fidelity", min(1.0, 0.6 + 0.25 * strength)),
                ("accuracy_in_language", max(0.02, accuracy)),
            ):
                low, high = wilson(round(value * 200), 200)
                cells.append(
                    GridCell(
                        language,
                        strength,
                        metric,
                        value,
                        200,
                        low,
                        high,
                        strength == 1.0 + 0.5 * (i > 2),
                    )
                )
    return tuple(cells)


def _examples() -> tuple[Example, ...]:
    return (
        Example("eng_Latn", "Where does Ana live?", "forest: Ana lives in the forest.",
                "forest: Ana lives in the forest.", "forest"),
        Example("spa_Latn", "¿Dónde vive Ana?", "forest: Ana lives in the forest.",
                "bosque: Ana vive en el bosque.", "bosque"),
        Example("rus_Cyrl", "Где живёт Анна?", "forest: Anna lives in the forest.",
                "лес: Анна живёт в лесу.", "лес"),
        Example("zho_Hans", "安娜住在哪里？", "forest: Ana lives in the forest.",
                "森林：安娜住在森林里。", "森林"),
        Example("arb_Arab", "أين تعيش آنا؟", "", "تعيش آنا في الغابة (17 <b>).", "الغابة"),
    )  # fmt: skip


class _Question:
    def __init__(self, language: str, fact_id: str) -> None:
        self.language, self.fact_id = language, fact_id


def _comparisons(rng: np.random.Generator, n: int) -> tuple:
    questions = [_Question(code, f"{i:04d}") for code in LANGUAGES for i in range(n)]
    found = [q.language for q in questions]
    judged = []
    for share in (0.3, 0.62):
        right = rng.random(len(questions)) < [
            0.985 if q.language == "eng_Latn" else share for q in questions
        ]
        answers = ["right" if hit else "wrong" for hit in right]
        judged.append(
            outcomes(answers, questions, identified=found, is_correct=lambda q, a, _: a == "right")
        )
    return tuple(compare(*judged, pivot="eng_Latn"))
