"""``python -m lens`` is the command ``lens``."""

from lens.cli import main

if __name__ == "__main__":
    main(prog_name="lens")
