"""The models of one world and seed: taught, located, masked, further pre-trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lens.demo.corpus import plain_text
from lens.demo.languages import PIVOT
from lens.demo.questions import double_rows
from lens.demo.transfer.config import TransferStudy
from lens.errors import InputError
from lens.merging.operations import extract
from lens.merging.sources import read_key_neurons
from lens.models.loading import load
from lens.training.finetune import Examples, FinetuneSettings, examples, finetune_corpus
from lens.utils.hashing import hash_of_path
from lens.utils.progress import say
from lens.utils.versions import versions


class Models:
    """Trains what a merge is made of, each into a folder of its own, unless it is there.

    Parameters
    ----------
    study : TransferStudy
        Settings.
    world : str
        Name of the world.
    seed : int
        Of corpora and training.
    out : Path
        Folder of the models of all seeds of the world.

    Raises
    ------
    InputError
        If ``out`` holds models of other settings or another base.
    """

    def __init__(self, study: TransferStudy, world: str, *, seed: int, out: Path) -> None:
        self.study, self.world, self.seed = study, world, seed
        self.out, self.shared = out / f"seed-{seed}", out / "shared"
        self.base = study.base.format(world=world)
        _check(out, {
            "base": hash_of_path(self.base), "seeds": list(study.seeds), "k1": list(study.k1),
            "languages": list(study.languages), "corpora": study.corpora.model_dump(),
            "training": study.training.model_dump(),
            "torch": versions()["torch"],
        })  # fmt: skip

    def path(self, name: str) -> str:
        """Folder of a model, or file of key neurons."""
        return str(self._folder(name) / name)

    def make(self) -> None:
        """Train all of them."""
        how = self.study.training
        self._taught("ability", how.ability)
        self._taught("located", how.located)
        for share in self.study.k1:
            self._extract(share)
            beside = (PIVOT,) if how.keys.replay else ()
            self._taught(f"keys-{share:g}", how.keys, keys=self._keys(share), general=beside)
        self._taught("replay", how.replay, general=(PIVOT,))
        for language in (PIVOT, *self.study.languages):
            self._made(
                f"text-{language}",
                how.text,
                lambda t, x=language: self._text(t, (x,), how.text.row_tokens),
            )
        every = (PIVOT, *self.study.languages)
        self._taught("mixture", how.mixture, general=every)
        self._taught("direct", how.direct, languages=every)

    def _folder(self, name: str) -> Path:
        once = name in ("direct", "mixture") or name.startswith("text-")
        return self.shared if once else self.out

    def _seed(self, name: str) -> int:
        return self.study.seeds[0] if self._folder(name) == self.shared else self.seed

    def held_out(self, language: str, split: str) -> list[str]:
        """Documents of a split of their own, none of which is among those of any training."""
        seed = {"validation": -1, "test": -2}[split]
        return list(plain_text(self.study.corpora.held_out, language=language, seed=seed))

    def _taught(
        self,
        name: str,
        settings: FinetuneSettings,
        *,
        keys: Path | None = None,
        general: tuple[str, ...] = (),
        languages: tuple[str, ...] = (PIVOT,),
    ) -> None:
        def corpus(tokenizer: Any) -> Examples:
            count = self.study.corpora.rows
            seed = self._seed(name)
            rows = [
                row for code in languages
                for row in double_rows(count, language=code, seed=seed)
            ]  # fmt: skip
            return examples(tokenizer, rows)

        self._made(name, settings, corpus, keys=keys, general=general)

    def _text(self, tokenizer: Any, languages: tuple[str, ...], size: int) -> Examples:
        count = self.study.corpora.documents // len(languages)
        rows = [
            r for x in languages for r in plain_text(count, language=x, seed=self.study.seeds[0])
        ]
        return examples(tokenizer, rows, row_tokens=size)

    def _made(
        self,
        name: str,
        settings: FinetuneSettings,
        corpus: Any,
        *,
        keys: Path | None = None,
        general: tuple[str, ...] = (),
    ) -> None:
        out = Path(self.path(name))
        if out.exists():
            return
        say(f"{self.world}, seed {self.seed}: training {name} …")
        model, tokenizer = load(self.base, dtype="float32")
        replay = self._text(tokenizer, general, settings.row_tokens) if general else None
        finetune_corpus(
            model, tokenizer, corpus(tokenizer), settings=settings, replay=replay,
            keys=None if keys is None else read_key_neurons(keys), seed=self._seed(name),
        ).save(out)  # fmt: skip

    def _keys(self, share: float) -> Path:
        return self.out / f"keys-{share:g}.safetensors"

    def _extract(self, share: float) -> None:
        if self._keys(share).exists():
            return
        extract({
            "merge_method": "maec", "base_model": self.base,
            "abilities": [{"trained": self.path("located")}], "parameters": {"k1": share},
        }, self._keys(share))  # fmt: skip


def _check(out: Path, decided: dict[str, Any]) -> None:
    """Refuse a folder whose models were made otherwise."""
    text = json.dumps(decided, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record = out / "models.json"
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8"))["sha256"] != digest:
            raise InputError(
                f"'{out}' holds models of other settings or another base; choose another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"sha256": digest, **decided}, indent=1), encoding="utf-8")
