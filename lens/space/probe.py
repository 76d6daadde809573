"""Probe a model: run parallel text through it and keep the space of its languages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
from lens.models.hidden_states import CaptureJournal, Pooling, capture_sets
from lens.models.layers import SiteSpec, resolve_sites
from lens.models.tokenization import ChatOptions, Role
from lens.space.provenance import Provenance, SpaceShard
from lens.space.space import Space
from lens.space.state_store import StatesDtype, StateStore, StateStoreWriter


def probe(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[str]],
    *,
    pivot: str = "eng_Latn",
    sites: SiteSpec = "all",
    pooling: Pooling = "mean",
    role: Role = "text",
    prompts: Mapping[str, Sequence[str]] | None = None,
    chat: ChatOptions | None = None,
    parallel: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    max_memory: str | int | None = None,
    layer_by_layer: bool | None = None,
    row_offset: int = 0,
    blocks: str | None = None,
    keep: str | Path | None = None,
    states_dtype: StatesDtype = "float16",
    choose_ranks: bool = False,
    work: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    seed: int = 0,
    n_threads: int | None = None,
    progress: bool | None = None,
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
    pivot : str
        Central language, one of `rows`.
    sites : str, int or sequence
        ``"all"``, ``"-2:"``, ``["block.3", "final"]``, ... (see `lens.models.resolve_sites`).
    pooling : str
        ``"mean"``, ``"last"`` or ``"weighted"``.
    role : str
        What a row is to the model: ``"text"``, ``"user"`` (a prompt, pooled ``last`` as a rule)
        or ``"assistant"`` (text in the assistant's turn, read where it is predicted).
    prompts : mapping, optional
        Language to user prompts, for role ``"assistant"``.
    chat : ChatOptions, optional
        Template, system message, thinking flag.
    parallel : bool
        Whether rows must be equally many in all languages.
    batch_size, max_tokens, max_memory, layer_by_layer, blocks, n_threads, progress
        As in `lens.models.capture`.
    row_offset : int
        Id of the first row, when `rows` is one shard of a larger set; shards are joined by
        `Space.merge`.
    keep : str or Path, optional
        Folder that keeps the pooled states too, for `lens.space.StateStore`.
    states_dtype : str
        How they are stored: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
    choose_ranks : bool
        Choose the rank of every site on the kept states, as `Space.choose_ranks` does.
    work : str or Path, optional
        Folder for what is finished while the probe runs, so that a killed one can go on; removed
        in the end.
    resume : bool
        Go on with the unfinished probe in ``work``, if there is one, to the same bits.
    force : bool
        Replace the folder ``keep`` if it is there, and discard an unfinished probe in ``work``.
    seed : int
        Recorded in the space.

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
    typed, center = _check(rows, pivot, parallel)
    prompt_rows = _prompts(prompts, typed, role)
    if choose_ranks and keep is None:
        raise InputError("choose_ranks needs the states of every row: name a folder with keep=")
    parts = locate(model, blocks=blocks)
    names = resolve_sites(sites, len(parts.blocks))
    counts = {code: len(rows[name]) for code, name in typed.items()}
    if resume and work is None:
        raise InputError("resume needs the folder in which the probe was begun: name it with work=")
    journal = None if work is None else CaptureJournal(Path(work), resume=resume, force=force)
    writer = None
    if keep is not None:
        writer = StateStoreWriter(
            keep, sites=names, counts=counts, width=parts.width, dtype=states_dtype,
            resume=resume, force=force,
        )  # fmt: skip
        if journal is not None and resume and journal.begun and writer.fresh:
            writer.discard()
            raise InputError(
                f"the unfinished probe in {work} has no states of its rows for {keep}; resume it "
                "with the same folder for states, or discard it with force (--force)"
            )
    results = capture_sets(
        model,
        tokenizer,
        {code: rows[name] for code, name in typed.items()},
        sites=sites,
        pooling=pooling,
        role=role,
        prompts=prompt_rows or None,
        chat=chat,
        batch_size=batch_size,
        max_tokens=max_tokens,
        max_memory=max_memory,
        row_offset=row_offset,
        keeper=writer,
        journal=journal,
        blocks=blocks,
        layer_by_layer=layer_by_layer,
        n_threads=n_threads,
        progress=progress,
    )
    found = {site: {code: results[code].moments[site] for code in typed} for site in names}
    truncated = {code: result.n_truncated for code, result in results.items()}
    about = Provenance(
        pivot=center,
        pooling=pooling,
        role=role,
        typed=typed,
        data={
            code: [SpaceShard(row_offset, len(rows[name]), sha256_rows(rows[name]))]
            for code, name in typed.items()
        },
        model=model_fingerprint(model),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        template_sha256=None if role == "text" else template_sha256(tokenizer, chat),
        prompts_sha256={code: sha256_rows(texts) for code, texts in prompt_rows.items()},
        chat={} if chat is None else chat.to_dict(),
        max_tokens=max_tokens,
        truncated=truncated,
        package_version=__version__,
        seed=seed,
        parallel=parallel,
    )
    space = Space(found, about)
    if writer is not None:
        states = StateStore(writer.finish(about))
        if choose_ranks:
            space = space.choose_ranks(states, seed=seed, n_threads=n_threads)
    if journal is not None:
        journal.discard()
    return space


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
