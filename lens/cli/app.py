"""The command ``lens``: its verbs, and how errors become one message and an exit code.

This module imports click and nothing else of weight; a verb's file is imported when the verb is
used, so that ``lens --help`` answers at once.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click

from lens import __version__
from lens.errors import LensError

VERBOSE = "lens.verbose"


Verbs = Mapping[str, tuple["str | Verbs", str]]


class LazyGroup(click.Group):
    """Subcommands by name: where each is, ``"module:function"`` or a group, and a line of help.

    A group that has a ``base`` is a command itself, when no subcommand follows.
    """

    def __init__(
        self, name: str, *, help: str, verbs: Verbs, base: click.Command | None = None
    ) -> None:
        super().__init__(
            name=name,
            help=help if base is None else base.help,
            params=[] if base is None else [*base.params],
            callback=None if base is None else _alone(base),
            invoke_without_command=base is not None,
            context_settings={
                "help_option_names": ["-h", "--help"],
                "token_normalize_func": lambda token: token.replace("_", "-"),
                "max_content_width": 100,
            },
        )
        self.verbs, self.base = verbs, base

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs in the order a user meets them."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in self.verbs:
            return None
        place, text = self.verbs[cmd_name]
        if isinstance(place, str):
            return _imported(place)
        base = place.get("")
        own = {name: verb for name, verb in place.items() if name}
        return LazyGroup(
            cmd_name, help=text, verbs=own, base=None if base is None else _imported(str(base[0]))
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the nearest one."""
        name = args[0].replace("_", "-")
        if name not in self.verbs and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.verbs, n=1, cutoff=0.5)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise click.UsageError(
                f"no command '{args[0]}'{hint} Commands: {', '.join(self.verbs)}.", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.verbs.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; an error that lens raised on purpose is one message and an exit code."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except LensError as error:
            _tell(ctx, str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("lens: interrupted; unfinished output was removed", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of a pipe went away: nobody is left to be told
            ctx.exit(141)
        except OSError as error:
            _tell(ctx, f"{error.strerror or error}: {error.filename or 'no file name given'}")
            ctx.exit(2)


def _tell(ctx: click.Context, message: str) -> None:
    if ctx.meta.get(VERBOSE):
        traceback.print_exc(file=sys.stderr)
    click.echo(f"lens: {message}", err=True)


def _imported(place: str) -> click.Command:
    module, _, name = place.partition(":")
    command: click.Command = getattr(import_module(module), name)
    return command


def _alone(base: click.Command) -> Callable[..., Any]:
    """Run a command unless a subcommand follows."""

    def run(**values: Any) -> None:
        if click.get_current_context().invoked_subcommand is None and base.callback is not None:
            base.callback(**values)

    return run


_VERBS: Verbs = {
    "demo": (
        {
            "": ("lens.cli.demo:demo", ""),
            "export": ("lens.cli.demo:export", "Write its models and text as a user's files."),
        },
        "Run everything on the embedded sample world; write a report.",
    ),
    "doctor": (
        "lens.cli.system:doctor",
        "Report what is installed, what is missing, and what fixes it.",
    ),
    "data": (
        {
            "check": (
                "lens.cli.data:check",
                "Report what is wrong with text, and what to do about it.",
            )
        },
        "Check text before anything is computed from it.",
    ),
    "probe": ("lens.cli.probe:probe", "Read the language space of a model from parallel text."),
    "space": (
        {
            "show": ("lens.cli.space:show", "Print what a space holds and where it comes from."),
            "merge": ("lens.cli.space:merge", "Join shards: the same languages, other rows."),
            "extend": ("lens.cli.space:extend", "Add languages read over the same rows."),
            "drop": ("lens.cli.space:drop", "Leave out languages."),
            "push": (
                "lens.cli.space:push",
                "Upload a space with its card to the Hugging Face Hub.",
            ),
            "pull": ("lens.cli.space:pull", "Bring a space from the Hugging Face Hub."),
        },
        "Merge, extend, cut, show and share language spaces.",
    ),
    "inspect": (
        "lens.cli.space:inspect",
        "Report what a space holds, how certain that is, and what to do.",
    ),
    "plan": (
        {
            "train": ("lens.cli.plan:train", "Plan lens train; takes the same options."),
            "probe": ("lens.cli.plan:probe", "Plan lens probe; takes the same options."),
            "merge": ("lens.cli.plan:merge", "Plan lens merge: what it reads, writes and holds."),
        },
        "Report what a job will need, and what would stop it, before it starts.",
    ),
    "train": (
        "lens.cli.train:train",
        "Train the top blocks to answer in the language asked (Lens).",
    ),
    "steer": ("lens.cli.steer:steer", "Generate with a language added or projected out."),
    "eval": ("lens.cli.evaluate:evaluate", "Measure fidelity and accuracy of a model's answers."),
    "merge": (
        "lens.cli.merge:merge",
        "Merge checkpoints: MAEC, task arithmetic, TIES, DARE and others.",
    ),
    "diff": ("lens.cli.merge:diff", "Show what models changed from their base."),
    "extract": (
        "lens.cli.merge:extract",
        "Extract an ability as the few weights that hold it (MAEC).",
    ),
    "maec": (
        {
            "train": (
                "lens.cli.merge:maec_train",
                "Tune a model on an ability or a text, or key neurons.",
            ),
            "run": (
                "lens.cli.merge:maec_run",
                "Locate, extract, train and merge: corpora to model.",
            ),
        },
        "Teach an ability in one language, carry it over by weights (arXiv 2410.07825).",
    ),
    "verify": (
        "lens.cli.merge:verify",
        "Compute tensors of a merged checkpoint again and compare.",
    ),
    "ablate": (
        "lens.cli.experiments:ablate",
        "Run a grid of settings; put the results side by side.",
    ),
    "report": ("lens.cli.report:report", "Render the report of a finished run again."),
}

main = LazyGroup(
    name="lens",
    help="Find, train, steer and measure the languages inside a language model.",
    verbs=_VERBS,
)
click.version_option(__version__, package_name="lens-lm", prog_name="lens")(main)
