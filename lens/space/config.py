"""Settings of a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lens.models.config import CaptureSettings
from lens.utils.settings import option

StatesDtype = Literal["float16", "bfloat16", "float32"]


class ProbeSettings(CaptureSettings):
    """How a language space is read."""

    pivot: str = option("eng_Latn", "Central language, one of those read.")
    parallel: bool = option(
        True, "Rows must be equally many in every language.", off="not-parallel"
    )
    keep_states: Path | None = option(
        None,
        "Folder that keeps the pooled states of every row too, for bootstrap and choice of rank.",
        metavar="DIR",
    )
    states_dtype: StatesDtype = option("float16", "How --keep-states stores them.")
    select_rank: bool = option(False, "Select the rank of every site on the kept states.")
    resume: bool = option(False, "Resume the same probe, which was interrupted.")
    force: bool = option(False, "Replace --out and the states; discard an interrupted probe.")
    seed: int = option(0, "Recorded in the space; decides the resamples of --select-rank.")
    work: Path | None = option(
        None, "Folder for finished batches, so that a killed probe can resume.", hidden=True
    )
    save_to: Path | None = option(
        None, "File that the space is saved to before its work folder goes.", hidden=True
    )
