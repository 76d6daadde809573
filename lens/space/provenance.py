"""Where a language space comes from: what is recorded, and which spaces belong together."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from lens.errors import InputError


@dataclass(frozen=True, slots=True)
class SpaceShard:
    """A run of rows of one language.

    Attributes
    ----------
    start, rows : int
        Id of the first row and their number.
    sha256 : str
        Hash of the text.
    """

    start: int
    rows: int
    sha256: str

    def overlaps(self, other: "SpaceShard") -> bool:
        """Whether the two share row ids."""
        return self.start < other.start + other.rows and other.start < self.start + self.rows


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the states of a space were read.

    Attributes
    ----------
    pivot : str
        Central language.
    pooling, role : str
        How positions of a row became one vector, and what a row was to the model.
    typed : dict
        Canonical language code to the spelling the user typed.
    data : dict
        Language to the shards of rows that were read.
    model : dict
        Fingerprint of the model (see `lens.models.fingerprint`); empty for states made elsewhere.
    tokenizer_sha256, template_sha256, prompts_sha256 : str or None
        Hashes; None where there was none.
    chat : dict
        Options of the chat template.
    max_tokens : int or None
        Length that rows were cut to, and `truncated` how many were.
    package_version : str
        Version of lens.
    seed : int
        Recorded for reproduction.
    parallel : bool
        Whether row i says the same in every language.
    ranks : dict
        Site to a rank chosen on kept states, with its reason (see `Space.choose_ranks`).
    """

    pivot: str
    pooling: str = "mean"
    role: str = "text"
    typed: dict[str, str] = field(default_factory=dict)
    data: dict[str, list[SpaceShard]] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    prompts_sha256: dict[str, str] = field(default_factory=dict)
    chat: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    truncated: dict[str, int] = field(default_factory=dict)
    package_version: str = ""
    seed: int = 0
    parallel: bool = True
    ranks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def check_model(self, model: Any, width: int) -> None:
        """Refuse a model other than the recorded one; without a record, one of another width."""
        from lens.models.fingerprint import model_fingerprint  # needs torch, a space does not

        found = model_fingerprint(model)
        if not self.model:
            if found["hidden_size"] not in (None, width):
                raise InputError(
                    f"this space has width {width}, the model has {found['hidden_size']}"
                )
        elif not same_model(self.model, found):
            raise InputError(
                f"this space was read from another model: {model_difference(self.model, found)} "
                "(the space's, then this model's); probe this model, or load the one the space "
                "belongs to"
            )

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a tokenizer other than the recorded one."""
        from lens.models.fingerprint import tokenizer_sha256

        expected = self.tokenizer_sha256
        if expected is not None and tokenizer_sha256(tokenizer) != expected:
            raise InputError(
                "this space was read with another tokenizer: its vocabulary, merges or "
                "normalisation differ; probe with this one, or load the one it was read with"
            )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Build from plain data; unknown keys (of a later version) are left out."""
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in content.items() if key in known}
        if "pivot" not in values:
            raise InputError("the record of the space names no pivot language")
        shards = values.get("data", {}).items()
        values["data"] = {code: [SpaceShard(**shard) for shard in runs] for code, runs in shards}
        return cls(**values)


def require_same_source(ours: Provenance, theirs: Provenance) -> None:
    """Refuse to combine spaces that were read differently; every difference is named."""
    names = {
        "pivot": "pivot language",
        "pooling": "pooling",
        "role": "role of the rows",
        "tokenizer_sha256": "tokenizer",
        "template_sha256": "chat template",
        "max_tokens": "max_tokens",
    }
    problems = [
        f"{text} differs: {getattr(ours, name)!r} and {getattr(theirs, name)!r}"
        for name, text in names.items()
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if not same_model(ours.model, theirs.model):
        problems.append("the model differs: " + model_difference(ours.model, theirs.model))
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"these spaces cannot be combined:\n{listed}")


def same_model(expected: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether two fingerprints agree in type, sizes and weights.

    The hash of the config only informs: its entries vary between versions of transformers.
    """
    decisive = (expected.keys() | found.keys()) - {"config_sha256"}
    return all(expected.get(key) == found.get(key) for key in decisive)


def model_difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Say in words how two model fingerprints differ."""
    parts = [
        f"{key} {expected.get(key)} and {found.get(key)}"
        for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
        if expected.get(key) != found.get(key)
    ]
    if parts:
        return ", ".join(parts)
    return "same type and sizes, other weights (a trained copy, or loaded in a narrower dtype)"


def combined_data(
    ours: Provenance, theirs: Provenance, *, shared: str
) -> dict[str, list[SpaceShard]]:
    """Join the row records of two spaces.

    A language in both must have different rows where ``shared`` is ``"merge"``, and the same rows
    where it is ``"same"``.
    """
    data = {code: list(shards) for code, shards in ours.data.items()}
    for code, shards in theirs.data.items():
        mine = data.setdefault(code, [])
        if not mine:
            mine.extend(shards)
        elif shared == "same":
            if mine != shards:
                raise InputError(
                    f"language {code} is in both spaces with different rows; drop it from one of "
                    "them, or use merge() when they are shards of one set of rows"
                )
        else:
            for shard in shards:
                if any(shard.overlaps(other) for other in mine):
                    raise InputError(
                        f"rows {shard.start} to {shard.start + shard.rows - 1} of {code} are in "
                        "both spaces; probe shards with different row_offset, or use extend()"
                    )
            mine.extend(shards)
            mine.sort(key=lambda shard: shard.start)
    return data
