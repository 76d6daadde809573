"""Rules, which hold arrays to apply to the residual stream, and policies, which name languages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.layers import LayerSpec, block_site, resolve_layers
from lens.steering.config import Method, Tokens
from lens.utils.files import write_text

if TYPE_CHECKING:
    from lens.subspace import SubspaceResult

SCHEMA = "lens.policy/1"
EVERY = "*"


class SteeringSpace(Protocol):
    """What steering needs of a language space; `lens.Space` is one."""

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        ...

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the model."""
        ...

    def language(self, typed: str) -> str:
        """Canonical code of a language of the space; refuses one that it does not have."""
        ...

    def delta(self, site: str | int, language: str) -> NDArray[np.float64]:
        """Step (d,) from the pivot's mean to that of a language."""
        ...

    def fit(
        self,
        site: str | int,
        *,
        rank: int | Literal["auto", "full"] = "auto",
        agnostic: Literal["mean", "complement"] = "mean",
    ) -> SubspaceResult:
        """Fit the language subspace of a site."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One change of the residual stream at some blocks.

    Attributes
    ----------
    method : str
        ``"add"``: h + strength * vector. ``"project"``: h - strength * M M^T h with the
        orthonormal basis M; a negative strength strengthens the language.
    layers : str, int or sequence of int
        Blocks whose outputs are changed, see `lens.models.resolve_layers`.
    strength : float
        Signed; 0 changes nothing, to the bit.
    vector : ndarray or None
        (d,) for ``"add"``.
    basis : ndarray or None
        (d, r), orthonormal columns, for ``"project"``.
    tokens : str
        ``"all"`` tokens, those of the ``"prompt"``, or those of the ``"generation"``.
    preserve_norm : bool
        Give each changed state the norm it had.

    Raises
    ------
    InputError
        When the parts do not fit together.
    """

    method: Method
    layers: LayerSpec
    strength: float = 1.0
    vector: NDArray[np.float64] | None = None
    basis: NDArray[np.float64] | None = None
    tokens: Tokens = "all"
    preserve_norm: bool = False

    def __post_init__(self) -> None:
        """Check the rule and bring its array to float64."""
        _check_words(self.method, self.tokens, self.strength)
        name, other = ("vector", "basis") if self.method == "add" else ("basis", "vector")
        given = getattr(self, name)
        if given is None or getattr(self, other) is not None:
            raise InputError(f"method '{self.method}' needs {name}= and no {other}=")
        array = np.asarray(given, dtype=np.float64)
        if array.ndim != (1 if name == "vector" else 2):
            expected = "(d,)" if name == "vector" else "(d, r)"
            raise InputError(f"{name} has shape {array.shape}; expected {expected}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} has NaN or infinite elements")
        if name == "basis":
            error = np.abs(array.T @ array - np.eye(array.shape[1])).max(initial=0.0)
            if error > 1e-4:
                raise InputError(
                    f"the columns of basis are not orthonormal (off by {error:.1g}); "
                    "take the basis of lens.subspace.fit, or orthonormalise it by QR"
                )
        object.__setattr__(self, name, array)

    @property
    def width(self) -> int:
        """Width of the residual stream the rule is made for."""
        array = self.vector if self.vector is not None else self.basis
        return 0 if array is None else int(array.shape[0])


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A rule that names a language of a space instead of holding arrays.

    Attributes
    ----------
    language : str
        Any spelling, or ``"*"`` for whichever language is asked for.
    layers : str, int or sequence of int
        Blocks, see `lens.models.resolve_layers`.
    method, strength, tokens, preserve_norm
        As in `Rule`.
    rank : int or str
        Rank of the basis of ``"project"``: a number, ``"auto"`` or ``"full"``.
    """

    language: str
    layers: LayerSpec
    method: Method = "add"
    strength: float = 1.0
    rank: int | str = "auto"
    tokens: Tokens = "all"
    preserve_norm: bool = False

    def __post_init__(self) -> None:
        """Check the words and canonicalise the language."""
        _check_words(self.method, self.tokens, self.strength)
        number = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank > 0
        if not number and self.rank not in ("auto", "full"):
            raise InputError(f"rank is {self.rank!r}; expected a number from 1, 'auto' or 'full'")
        if self.language != EVERY:
            object.__setattr__(self, "language", canonical(str(self.language)))


@dataclass(frozen=True, slots=True)
class Policy:
    """An ordered list of rules, tied to a space by its hash.

    Attributes
    ----------
    rules : tuple of PolicyRule
        Applied in order.
    space_sha256 : str or None
        `Space.sha256` of the space the strengths were chosen with; None fits any space.
    """

    rules: tuple[PolicyRule, ...]
    space_sha256: str | None = None

    def resolve(self, space: SteeringSpace, *, language: str | None = None) -> tuple[Rule, ...]:
        """Fill in directions and bases from a space.

        Parameters
        ----------
        space : Space
            The space the policy was made for.
        language : str, optional
            Language to steer to. Rules of other languages are left out. Needed unless the rules
            name one language only.

        Returns
        -------
        tuple of Rule
            One rule per layer, ready for `lens.steering.steer`.

        Raises
        ------
        InputError
            When the space is another one, or a language or layer is not in it.
        """
        if self.space_sha256 is not None and self.space_sha256 != space.sha256:
            raise InputError(
                f"this policy belongs to another space (sha256 {self.space_sha256[:12]}..., this "
                f"space has {space.sha256[:12]}...); load that space, or tune the policy again"
            )
        target = self._target(space, language)
        rules: list[Rule] = []
        for rule in self.rules:
            if rule.language not in (EVERY, target):
                continue
            for layer in resolve_layers(rule.layers, space.n_blocks):
                rules.append(_bind(rule, layer, space, target))
        return tuple(rules)

    def save(self, path: str | Path) -> Path:
        """Write the policy as YAML, in one atomic step, and return the path."""
        content = {"schema": SCHEMA, "space": self.space_sha256}
        rules = [_plain(rule) for rule in self.rules]
        text = yaml.safe_dump({**content, "rules": rules}, sort_keys=False, allow_unicode=True)
        write_text(path, text)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy.

        Parameters
        ----------
        path : str or Path
            YAML (or JSON) file.

        Returns
        -------
        Policy
            Checked rules.

        Raises
        ------
        InputError
            When the file is missing or wrong; every problem is listed, an unknown key with the
            nearest known one.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"policy '{path}' does not exist; expected a YAML file with rules")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"policy '{path}' is not YAML: {error}") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise InputError(f"'{path}' is not a policy; expected 'schema: {SCHEMA}' in it")
        problems = _unknown(content, ("schema", "space", "rules"), "the policy")
        entries = content.get("rules")
        rules: list[PolicyRule] = []
        if not isinstance(entries, list) or not entries:
            problems.append("rules: expected a list of at least one rule")
            entries = []
        for number, entry in enumerate(entries, start=1):
            rules += _parse(entry, f"rule {number}", problems)
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise InputError(f"policy '{path}' cannot be used:\n{listed}")
        return cls(tuple(rules), content.get("space"))

    def _target(self, space: SteeringSpace, language: str | None) -> str | None:
        if language is not None:
            return space.language(language)
        named = {rule.language for rule in self.rules} - {EVERY}
        if len(named) == 1:
            return space.language(named.pop())
        if named or any(rule.method == "add" for rule in self.rules):
            listed = ", ".join(sorted(named)) or "any of the space"
            raise InputError(f"say which language to steer to with language=; there is: {listed}")
        return None


def _bind(rule: PolicyRule, layer: int, space: SteeringSpace, target: str | None) -> Rule:
    vector = basis = None
    if rule.method == "project":
        rank: Any = rule.rank
        basis = space.fit(block_site(layer), rank=rank, agnostic="complement").basis
    elif target is not None:
        vector = space.delta(block_site(layer), target)
    return Rule(
        method=rule.method,
        layers=layer,
        strength=rule.strength,
        vector=vector,
        basis=basis,
        tokens=rule.tokens,
        preserve_norm=rule.preserve_norm,
    )


def _check_words(method: str, tokens: str, strength: float) -> None:
    words = (("method", method, get_args(Method)), ("tokens", tokens, get_args(Tokens)))
    for name, value, known in words:
        if value not in known:
            raise InputError(f"{name} is {value!r}; expected one of: {', '.join(known)}")
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not math.isfinite(strength):
        raise InputError(f"strength is {strength!r}; expected a finite number")


def _plain(rule: PolicyRule) -> dict[str, Any]:
    content = asdict(rule)
    if not isinstance(rule.layers, str | int):
        content["layers"] = list(rule.layers)
    return content


def _parse(entry: object, where: str, problems: list[str]) -> Iterable[PolicyRule]:
    if not isinstance(entry, dict):
        problems.append(f"{where}: expected keys such as language, layers, method, strength")
        return []
    known = tuple(field.name for field in fields(PolicyRule))
    unknown = _unknown(entry, known, where)
    missing = [f"{where}: '{key}' is missing" for key in ("language", "layers") if key not in entry]
    problems += [*unknown, *missing]
    if unknown or missing:
        return []
    try:
        return [PolicyRule(**entry)]
    except InputError as error:
        problems.append(f"{where}: {error}")
        return []


def _unknown(content: dict[str, Any], known: tuple[str, ...], where: str) -> list[str]:
    problems = []
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            problems.append(f"{where}: unknown key '{key}'; {hint}")
    return problems
