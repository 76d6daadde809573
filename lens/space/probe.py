"""Probe a model: run parallel text through it and keep the space of its languages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens import __version__
from lens.data.languages import canonical, canonical_all
from lens.errors import InputError
from lens.models.architecture import locate
from lens.models.fingerprint import (
    model_fingerprint,
    sha256_rows,
    template_sha256,
    tokenizer_sha256,
)
from lens.models.hidden_states import CaptureJournal, capture_sets
from lens.models.layers import resolve_sites
from lens.models.tokenization import Role
from lens.space.config import ProbeSettings
from lens.space.provenance import Provenance, SpaceShard
from lens.space.space import Space
from lens.space.state_store import StateStore, StateStoreWriter
from lens.utils.settings import takes


@takes(ProbeSettings)
def probe(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[str]],
    *,
    prompts: Mapping[str, Sequence[str]] | None = None,
    settings: ProbeSettings,
) -> Space:
    """Read the language space of a model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    rows : mapping
        Language (any spelling) to rows of text; row i says the same in every language.
    prompts : mapping, optional
        Language to user prompts, for role ``"assistant"``.

    Returns
    -------
    Space
        Statistics per site and language.

    Raises
    ------
    InputError
        When there are fewer than two languages, two spellings of one, unequal or too few rows, an
        unknown site, a model whose blocks cannot be found, or a state that is not finite.

    References
    ----------
    arXiv 2410.04407 (Lens), arXiv 2401.05792 (LSAR).
    """
    typed, center = _check(rows, settings.pivot, settings.parallel)
    prompt_rows = _prompts(prompts, typed, settings.role)
    if settings.select_rank and settings.keep_states is None:
        raise InputError(
            "select_rank needs the states of every row: name a folder with keep_states "
            "(--keep-states)"
        )
    if settings.resume and settings.work is None:
        raise InputError("resume needs the folder in which the probe was begun: name it with work=")
    journal = None
    if settings.work is not None:
        journal = CaptureJournal(settings.work, resume=settings.resume, force=settings.force)
    counts = {code: len(rows[name]) for code, name in typed.items()}
    writer = _writer(model, counts, settings, journal)
    results = capture_sets(
        model,
        tokenizer,
        {code: rows[name] for code, name in typed.items()},
        prompts=prompt_rows or None,
        keeper=writer,
        journal=journal,
        settings=settings,
    )
    sites = next(iter(results.values())).sites
    found = {site: {code: results[code].moments[site] for code in typed} for site in sites}
    offset, chat = settings.row_offset, settings.chat
    about = Provenance(
        pivot=center,
        pooling=settings.pooling,
        role=settings.role,
        typed=typed,
        data={
            code: [SpaceShard(offset, len(rows[name]), sha256_rows(rows[name]))]
            for code, name in typed.items()
        },
        model=model_fingerprint(model),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        template_sha256=None if settings.role == "text" else template_sha256(tokenizer, chat),
        prompts_sha256={code: sha256_rows(texts) for code, texts in prompt_rows.items()},
        chat={} if chat is None else chat.to_dict(),
        max_tokens=settings.max_tokens,
        truncated={code: result.n_truncated for code, result in results.items()},
        package_version=__version__,
        seed=settings.seed,
        parallel=settings.parallel,
    )
    space = Space(found, about)
    if writer is not None:
        states = StateStore(writer.finish(about))
        if settings.select_rank:
            space = space.choose_ranks(states, seed=settings.seed, n_threads=settings.n_threads)
    if settings.save_to is not None:
        _save(space, settings.save_to, journal)
    if journal is not None:
        journal.discard()
    return space


def _save(space: Space, out: Path, journal: CaptureJournal | None) -> None:
    """Save the space; where that fails, report that the probe can resume."""
    try:
        space.save(out)
    except InputError as error:
        if journal is None:
            raise
        raise InputError(
            f"{error}; {journal.keeps} are kept in {journal.path}: continue with --resume"
        ) from None


def _writer(
    model: Any, counts: dict[str, int], settings: ProbeSettings, journal: CaptureJournal | None
) -> StateStoreWriter | None:
    """Writer of the pooled states, where they are kept."""
    if settings.keep_states is None:
        return None
    parts = locate(model, blocks=settings.blocks)
    writer = StateStoreWriter(
        settings.keep_states,
        sites=resolve_sites(settings.sites, len(parts.blocks)),
        counts=counts,
        width=parts.width,
        dtype=settings.states_dtype,
        resume=settings.resume,
        force=settings.force,
    )
    if journal is not None and settings.resume and journal.begun and writer.fresh:
        writer.discard()
        raise InputError(
            f"the unfinished probe in {settings.work} has no states of its rows for "
            f"{settings.keep_states}; resume it with the same folder for states, or discard it "
            "with force (--force)"
        )
    return writer


def _check(
    rows: Mapping[str, Sequence[str]], pivot: str, parallel: bool
) -> tuple[dict[str, str], str]:
    """Check languages and counts before the model is touched; list every problem."""
    typed = canonical_all(rows)
    center = canonical(pivot)
    problems: list[str] = []
    if len(typed) < 2:
        problems.append(
            f"one language only ({', '.join(typed) or 'none'}); a space needs at least two, "
            "because language directions are differences between languages: add rows of another"
        )
    if center not in typed:
        problems.append(f"the pivot {pivot!r} ({center}) is not among: {', '.join(typed)}")
    counts = {code: len(rows[name]) for code, name in typed.items()}
    listed = ", ".join(f"{code} {count}" for code, count in counts.items())
    if min(counts.values(), default=2) < 2:
        problems.append(f"too few rows: {listed}; expected at least 2 in each language")
    if parallel and len(set(counts.values())) > 1:
        problems.append(
            f"unequal numbers of rows: {listed}; row i must say the same in every language "
            "(parallel=False accepts rows that are not parallel)"
        )
    if problems:
        raise InputError("\n".join(problems))
    return typed, center


def _prompts(
    prompts: Mapping[str, Sequence[str]] | None, typed: dict[str, str], role: Role
) -> dict[str, Sequence[str]]:
    if prompts is None:
        return {}
    if role != "assistant":
        raise InputError(f"prompts= belongs to role 'assistant'; the role is {role!r}")
    found = {code: prompts[name] for code, name in canonical_all(prompts).items()}
    missing = [code for code in typed if not found.get(code)]
    if missing:
        raise InputError(
            f"prompts= has none for {', '.join(missing)}; give user prompts in every language"
        )
    return {code: found[code] for code in typed}
