"""The command line, called in this process."""

from click.testing import CliRunner

from lens.cli.app import main


def run(*arguments):
    """Call ``lens`` with arguments; an exception that is not an exit is a bug and is raised."""
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
