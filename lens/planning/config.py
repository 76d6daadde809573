"""Settings of plans: those of the job, and figures to use instead of measuring."""

from __future__ import annotations

from pathlib import Path

from lens.data.config import CorpusSettings
from lens.space.config import ProbeSettings
from lens.training.config import TrainSettings
from lens.utils.settings import Names, Settings, option


class PlanSettings(Settings):
    """Settings of every plan."""

    dtype: str = option("auto", "auto (as the checkpoint says), float32, bfloat16 or float16.")
    trust_remote_code: bool = option(False, "Run code of the checkpoint.")
    tokens: int | None = option(None, "Length of every row, in place of counting.", ge=1)
    quick: bool = option(
        False,
        "From headers alone, in milliseconds; estimates no time. Missing tensors are then found by "
        "comparing blocks, and tokens are counted in bytes of text.",
    )


class TrainPlanSettings(TrainSettings, PlanSettings):
    """Plan of a training run."""

    languages: Names | None = option(
        None, "Languages to train; all in the prompts by default.", key="langs"
    )
    limit: int | None = option(None, "Prompts per language.", ge=2)
    answer_tokens: int | None = option(
        None, "Length of answers, for losses on them; by default as long as prompts.", ge=1
    )
    out: Path | None = option(None, "Where the result will be written, for the space on that disk.")


class ProbePlanSettings(ProbeSettings, CorpusSettings, PlanSettings):
    """Plan of a probe."""

    out: Path | None = option(
        None,
        "File that the space will be written to; space.safetensors in the current folder by "
        "default. Finished batches go to a folder beside it while the probe runs.",
    )
