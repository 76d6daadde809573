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
    """Refuse to combine spaces that were read differently; every difference is named.

    Parameters
    ----------
    ours, theirs : About
        Records of the two spaces.

    Raises
    ------
    InputError
        When anything but the languages and rows differs.
    """
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
    """Whether two fingerprints are of one model.

    Parameters
    ----------
    expected, found : dict
        Fingerprints.

    Returns
    -------
    bool
        True when type, sizes and weights agree. The hash of the config only informs: its entries
        come and go between versions of transformers.
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

    Parameters
    ----------
    ours, theirs : About
        Records of the two spaces.
    shared : str
        ``"merge"``: a language in both must have different rows. ``"same"``: it must have the
        same ones.

    Returns
    -------
    dict
        Language to shards.

    Raises
    ------
    InputError
        When the rows of a shared language are not as demanded.
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
