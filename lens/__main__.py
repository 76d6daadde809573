"""The command ``lens``, and ``python -m lens``."""

import atexit
import gc
import os
import sys
import threading


def run() -> None:
    """Run the command, then leave without taking the interpreter apart.

    That would take 35 ms to free memory which ends with the process all the same. What was asked to
    happen at the end happens; where torch or a thread is still there, the usual way out is taken.
    """
    gc.set_threshold(10_000)  # imports make no garbage to be looked for every 700 objects
    try:
        from lens.cli.app import main

        main(prog_name="lens")
    except KeyboardInterrupt:  # before there was a command to catch it
        sys.exit(130)
    except SystemExit as end:
        if "torch" in sys.modules or threading.active_count() > 1 or type(end.code) is not int:
            raise
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # whoever was reading went away
            raise end from None
        os._exit(end.code)


if __name__ == "__main__":
    run()
