"""The command ``hermosis``. Each command imports what it needs when it runs, so that help is quick and always there."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; a package that is missing is named with the command that installs it."""
    from hermosis_server.cli.extras import cure

    try:
        from hermosis_server.cli.root import app

        app(prog_name="hermosis")
    except ModuleNotFoundError as error:
        advice = cure(error)
        if advice is None:
            raise
        print(f"hermosis: {advice}", file=sys.stderr)
        sys.exit(1)
