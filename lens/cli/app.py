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
from typing import Any, NamedTuple

import click

from lens import __version__
from lens.errors import LensError

VERBOSE = "lens.verbose"


class Entry(NamedTuple):
    """A command: ``"file:function"``, a line of help, and subcommands if it is a group."""

    place: str
    text: str
    verbs: dict[str, Entry]

    def load(self, name: str) -> click.Command:
        """Import the command, or make its group."""
        own: click.Command | None = None
        if self.place != "-":
            module, _, function = self.place.partition(":")
            own = getattr(import_module(f"lens.cli.{module}"), function)
        if own is None or self.verbs:
            return LazyGroup(name, self.text, self.verbs, base=own)
        return own


class LazyGroup(click.Group):
    """Subcommands that are imported when they are used.

    A group that has a ``base`` is a command itself, when no subcommand follows.
    """

    def __init__(
        self, name: str, help: str, verbs: Mapping[str, Entry], *, base: click.Command | None = None
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
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs in the order a user meets them."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        verb = self.verbs.get(cmd_name)
        return None if verb is None else verb.load(cmd_name)

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
            formatter.write_dl([(name, text) for name, (_, text, _) in self.verbs.items()])

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


def _alone(base: click.Command) -> Callable[..., Any]:
    """Run a command unless a subcommand follows."""

    def run(**values: Any) -> None:
        if click.get_current_context().invoked_subcommand is None and base.callback is not None:
            base.callback(**values)

    return run


# Command, where its function is (file of this folder, name), line of help; groups have no function.
_COMMANDS = """
demo            demo:demo              Run everything on the embedded sample world; write a report.
demo export     demo:export            Write its models and text as a user's files.
doctor          system:doctor          Report what is installed, what is missing, and what fixes it.
data            -                      Check text before anything is computed from it.
data check      data:check             Report what is wrong with text, and what to do about it.
probe           probe:probe            Read the language space of a model from parallel text.
space           -                      Merge, extend, cut, show and share language spaces.
space show      space:show             Print what a space holds and where it comes from.
space merge     space:merge            Join shards: the same languages, other rows.
space extend    space:extend           Add languages read over the same rows.
space drop      space:drop             Leave out languages.
space push      space:push             Upload a space with its card to the Hugging Face Hub.
space pull      space:pull             Bring a space from the Hugging Face Hub.
inspect         space:inspect          Report what a space holds, how certain that is, what to do.
plan            -                      Report what a job will need, and what would stop it.
plan train      plan:train             Plan lens train; takes the same options.
plan probe      plan:probe             Plan lens probe; takes the same options.
plan merge      plan:merge             Plan lens merge: what it reads, writes and holds.
train           train:train            Train the top blocks to answer in the language asked (Lens).
steer           steer:steer            Generate with a language added or projected out.
eval            evaluate:evaluate      Measure fidelity and accuracy of a model's answers.
merge           merge:merge            Merge checkpoints: MAEC, task arithmetic, TIES, DARE, ...
diff            merge:diff             Show what models changed from their base.
extract         merge:extract          Extract an ability as the few weights that hold it (MAEC).
maec            -                      Teach an ability in one language, carry it over by weights.
maec train      merge:maec_train       Tune a model on an ability or a text, or key neurons.
maec run        merge:maec_run         Locate, extract, train and merge: corpora to model.
verify          merge:verify           Compute tensors of a merged checkpoint again and compare.
ablate          experiments:ablate     Run a grid of settings; put the results side by side.
report          report:report          Render the report of a finished run again.
"""


def _verbs() -> dict[str, Entry]:
    """Commands of `_COMMANDS`, those of two words inside the group of their first."""
    found: dict[str, Entry] = {}
    for line in _COMMANDS.strip().splitlines():
        name, place, text = line[:16].strip(), line[16:39].strip(), line[39:]
        group, _, inner = name.partition(" ")
        if inner:
            found[group].verbs[inner] = Entry(place, text, {})
        else:
            found[name] = Entry(place, text, {})
    return found


main = LazyGroup(
    name="lens",
    help="Find, train, steer and measure the languages inside a language model.",
    verbs=_verbs(),
)
click.version_option(__version__, package_name="lens-lm", prog_name="lens")(main)
