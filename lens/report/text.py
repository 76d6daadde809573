"""Results as plain lines of text, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.data.languages import english_name
from lens.utils.files import said

if TYPE_CHECKING:
    from lens.experiments.tuning import TuneResult
    from lens.merging.operations import MergeResult
    from lens.space.space import Space
    from lens.training.result import TrainResult


def space_text(space: Space) -> str:
    """Describe a space and where it comes from."""
    about = space.about
    model = about.model or {"model_type": "not recorded (made from states)"}
    lines = [
        f"pivot      {about.typed.get(space.pivot, space.pivot)} ({space.pivot})",
        f"sites      {', '.join(space.sites)}; width {space.width}",
        f"read       {about.pooling} pooling, role {about.role}, lens {about.package_version}",
        f"model      {', '.join(f'{key} {value}' for key, value in model.items())}",
        f"tokenizer  {about.tokenizer_sha256 or 'not recorded'}",
        f"sha256     {space.sha256} (as saved)",
    ]
    for code, count in space.counts.items():
        shards = about.data.get(code, [])
        rows = ", ".join(f"{s.start}-{s.start + s.rows - 1} {s.sha256[:12]}" for s in shards)
        typed = about.typed.get(code, code)
        lines.append(
            f"{typed:<10} {code}  {english_name(code)}: {count} rows ({rows or 'no record'})"
        )
    return "\n".join(lines)


def training_text(result: TrainResult) -> str:
    """Report a training run: losses, what was chosen on validation, how far refusals moved."""
    last, about, lines = result.log[-1] if result.log else {}, result.about, []
    if "tuning" in about:
        best = about["tuning"]["best"]
        lines.append(
            f"chose trial {best['number']} of {len(about['tuning']['trials'])}: "
            f"{about['tuning']['metric']} {best['quality']:.3f}, drift {best['drift']:.4f} nats; "
            f"layers {best['setting']['layers']}, strength {strength_text(best['strength'])}"
        )
    losses = ", ".join(f"{k} {v:.4g}" for k, v in last.items() if k.startswith("loss"))
    lines.append(f"{len(result.log)} steps in {result.seconds:.1f} s; last step: {losses}")
    if "validation" in about:
        best = about["validation"]
        lines.append(f"kept the weights of step {best['best_step']}: validation {best['loss']:.4g}")
    if "refusal_drift" in about:
        moved = about["refusal_drift"]
        lines.append(
            f"refusals: another first token on {moved['changed']:.1%} of {moved['n']} prompts "
            f"(95 % interval {moved['changed_low']:.1%} to {moved['changed_high']:.1%}), "
            f"KL {moved['kl']:.3g} nats"
        )
    return "\n".join(lines)


def beyond_drift_text(found: TuneResult, work: Path) -> str:
    """Say that no trial of a search keeps the bound on drift, and what to change."""
    best = found.best
    return (
        f"no trial of {len(found.trials)} keeps the pivot's drift within "
        f"{found.tuning.max_drift:g} nats, so nothing was saved; the nearest is trial "
        f"{best.number}: {best}, layers {best.layers}, strength {strength_text(best.strength)}. "
        "Lower the range of strengths, search what holds the pivot (such as "
        "losses.terms.1.weight), or raise max_drift: the trials are kept in "
        f"{work} and are not run again for that"
    )


def strength_text(strength: Mapping[str, float]) -> str:
    """Write strengths as ``--strength`` takes them."""
    return ",".join(f"{lang}={value:.3g}" for lang, value in strength.items())


def merge_text(result: MergeResult) -> str:
    """Report the size and the rate of a merge."""
    rate = result.bytes_written / max(result.seconds, 1e-9) / 1e6
    return (
        f"{result.tensors} tensors, {result.parameters / 1e6:.1f} M parameters in "
        f"{result.seconds:.1f} s, {rate:.0f} MB written a second"
    )


def merge_plan_text(plan: Mapping[str, Any]) -> str:
    """Report what a merge will read, write and hold, and everything that would stop it."""
    lines = [
        f"{plan['method']} of {', '.join(plan['sources'])}",
        f"{plan['tensors']} tensors, {plan['parameters'] / 1e6:.1f} M parameters; reads "
        f"{said(plan['bytes_read'])}, writes {said(plan['bytes_written'])}, holds at most "
        f"{said(plan['memory'])} in memory, about {plan['seconds']} s",
        *(f"note: {note}" for note in plan["notes"]),
        *(f"problem: {problem}" for problem in plan["problems"]),
    ]
    return "\n".join(lines)
