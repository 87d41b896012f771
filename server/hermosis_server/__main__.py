"""``python -m hermosis_server …`` is the command ``hermosis …``."""

from hermosis_server.cli import main

if __name__ == "__main__":
    main()
