"""Database: the way to SQLite or PostgreSQL, and tables that are up to date."""

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import SQLAlchemyError

from hermosis_client import errors

_MIGRATIONS = Path(__file__).parent / "migrations"


def engine_of(url: str) -> sa.Engine:
    """Connections to the database; none is made yet, but the folder of a file is.

    Raises:
      InvalidRequest: the URL cannot be right.
      Unsupported:    a package is missing.
      StorageFailed:  the folder cannot be made.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            return sa.create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        if parsed.get_backend_name() != "sqlite":
            raise errors.InvalidRequest(
                f"history in {parsed.get_backend_name()} is not known; give a URL of sqlite or postgresql"
            )
    except SQLAlchemyError as error:
        raise errors.InvalidRequest(f"{error}; write it as sqlite:///path or postgresql://user@host/database") from None
    except ModuleNotFoundError as error:
        raise errors.Unsupported(
            f"history in PostgreSQL needs a package that is missing ({error.name}): pip install 'hermosis[postgres]'"
        ) from None
    if parsed.database:
        _make_folder(Path(parsed.database).parent)
    engine = sa.create_engine(parsed, connect_args={"timeout": 5.0})
    sa.event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.StorageFailed(
            f"the history's folder {folder} cannot be made ({error.strerror}); name another one by --history-folder, "
            "or none: --history-folder ''"
        ) from None


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Readers beside the one that writes; what a power cut takes is the last moments of a curve, so no sync a commit.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()


def migrate(connection: sa.Connection) -> None:
    """Brings the tables up to date."""
    configuration = Config()
    configuration.set_main_option("script_location", os.fspath(_MIGRATIONS).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
