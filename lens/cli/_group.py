"""A click group that imports a verb when it is used and turns errors into one message."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from lens import __version__
from lens.errors import LensError

VERBOSE = "lens.verbose"


class LazyGroup(click.Group):
    """Subcommands by name: module and one line of help; the module holds ``command``.

    ``"module:name"`` names a command in a module that holds several.
    """

    def __init__(
        self, name: str, *, help: str, verbs: Mapping[str, tuple[str, str]], root: bool = True
    ) -> None:
        super().__init__(
            name=name,
            help=help,
            context_settings={
                "help_option_names": ["-h", "--help"],
                "token_normalize_func": lambda token: token.replace("_", "-"),
                "max_content_width": 100,
            },
        )
        self.verbs = verbs
        if root:
            click.version_option(__version__, package_name="lens-lm", prog_name="lens")(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs in the order a user meets them."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in self.verbs:
            return None
        module, _, name = self.verbs[cmd_name][0].partition(":")
        command = getattr(import_module(module), name or "command")
        return command if isinstance(command, click.Command) else None

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
