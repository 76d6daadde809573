"""The study as data: worlds, seeds, how its models are trained, what is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lens.demo.languages import OTHERS, PIVOT, check_language
from lens.training.finetune import FinetuneSettings
from lens.utils.config import read_as


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Corpora(_Frozen):
    """How much is written of each corpus.

    Attributes
    ----------
    rows : int
        Double questions with answers, in each language that they are taught in.
    documents : int
        Documents of plain text in each language.
    held_out : int
        Documents that perplexity is measured on; none of them is trained on.
    """

    rows: int = Field(3000, ge=1)
    documents: int = Field(6000, ge=1)
    held_out: int = Field(64, ge=1)


class Trainings(_Frozen):
    """Settings of each kind of model.

    Attributes
    ----------
    ability : Tuning
        The ability.
    direct : Tuning
        The same in all languages at once: the ceiling.
    replay : Tuning
        The same with a share of plain text in the pivot.
    mixture : Tuning
        With a share of plain text in the pivot and all languages: what one would train on without
        merging.
    located : Tuning
        The brief training that key neurons are found by.
    keys : Tuning
        Key neurons alone, perhaps with a share of plain text in the pivot.
    text : Tuning
        Continued pre-training on the text of one language.
    """

    ability: FinetuneSettings
    direct: FinetuneSettings
    replay: FinetuneSettings
    mixture: FinetuneSettings
    located: FinetuneSettings
    keys: FinetuneSettings
    text: FinetuneSettings


class TransferStudy(_Frozen):
    """The whole study.

    Attributes
    ----------
    base : str
        Model that all others start from; ``{world}`` is replaced by each of ``worlds``.
    worlds : tuple of str
        Names of worlds.
    seeds : tuple of int
        Of the trainings on the ability. Settings of merges are searched with the first and used
        with all; the other models are trained once a world, with the first.
    languages : tuple of str
        The ability is carried to each of them, by a merge of its own.
    searched : tuple of str
        Those of them whose validation questions settings are chosen on, once in each world, for
        all languages; each of them by default.
    trials : int
        Of the search, for each method.
    k1 : tuple of float
        Shares of key neurons that are trained alone.
    validation, test : int
        Questions in each language: the search sees the former only.
    test_from : int
        Test questions left out before these: those that another study asked already.
    max_loss : float
        Largest fall of the ability in the pivot below that of training on it alone, on validation.
    max_perplexity : float
        Largest perplexity of the language's text, over that of its own continued pre-training.
    """

    title: str = "An ability carried to other languages"
    base: str
    worlds: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    languages: tuple[str, ...] = OTHERS
    searched: tuple[str, ...] = ()
    trials: int = Field(60, ge=1)
    k1: tuple[float, ...] = Field((0.05, 0.2), min_length=1)
    corpora: Corpora = Corpora()
    training: Trainings
    validation: int = Field(100, ge=2)
    test: int = Field(300, ge=2)
    test_from: int = Field(0, ge=0)
    max_loss: float = Field(0.03, ge=0)
    max_perplexity: float = Field(1.03, gt=0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for code in self.languages:
            if check_language(code) == PIVOT:
                raise ValueError(f"languages: {code} is the pivot, in which the ability is taught")
        foreign = [code for code in self.searched if code not in self.languages]
        if foreign:
            raise ValueError(f"searched: {', '.join(foreign)} is none of the languages")
        if not all(0 < share < 1 for share in self.k1):
            raise ValueError("k1: expected shares above 0 and below 1")
        return self


def read_study(path: str | Path) -> TransferStudy:
    """Read a study from YAML; paths in it are relative to the working folder.

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    return read_as(path, TransferStudy)
