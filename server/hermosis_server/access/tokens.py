"""Tokens: the file of those who may come in, which holds fingerprints and never a token.

A token is 256 random bits. Nobody can guess it, so its plain SHA-256 tells nothing about it, and the slow hash that a
password needs would only slow every call. A revoked token stays in the file: a server whose last token was revoked
still asks for one.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hermosis_server.access.admission import Admission
from hermosis_server.errors import InvalidRequest, Unauthenticated
from hermosis_server.identity import DEFAULT_TENANT, EVERY_SESSION, checked_identity

PREFIX = "hmt_"
FILE_NAME = "tokens.json"

_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """What is known of a token. Times are seconds since 1970; None means never."""

    name: str
    fingerprint: str  # SHA-256 of the token, in hexadecimal
    role: str
    tenant: str = DEFAULT_TENANT
    sessions: str = EVERY_SESSION
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None

    def admission(self) -> Admission:
        """Whom it lets in."""
        identity = checked_identity(
            subject=self.name, tenant=self.tenant, role=self.role.lower(), sessions=self.sessions
        )
        return Admission(identity=identity, expires_s=self.expires_s, fingerprint=self.fingerprint)


def fingerprint(token: str) -> str:
    """By which a token is looked up."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenFile:
    """The tokens of a data folder. A command may change them while a server reads them.

    Args:
      folder: of the server's data.
      clock:  seconds since 1970.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / FILE_NAME
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = None
        self._known: dict[str, TokenRecord] = {}
        self.refresh()

    @property
    def records(self) -> list[TokenRecord]:
        """All of them, oldest first."""
        return list(self._known.values())

    def refresh(self) -> bool:
        """Reads the file if it has changed; whether it had.

        Raises:
          InvalidRequest: it is not what this class wrote.
        """
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return False
            self._stamp = stamp  # also of one that cannot be read: it is read again when it has changed
            self._known = {record.fingerprint: record for record in _read(self.path)}
        except FileNotFoundError:
            changed = bool(self._known)
            self._known, self._stamp = {}, None
            return changed
        return True

    def admit(self, token: str) -> Admission:
        """Whom a token lets in.

        Raises:
          Unauthenticated: it is unknown, revoked or expired.
        """
        return self.admission(fingerprint(token))

    def admission(self, mark: str) -> Admission:
        """Whom the token of a fingerprint lets in; raises as `admit` does."""
        record = self._known.get(mark)
        # A lookup by hash gives no time to measure: what is compared is not what was sent.
        if record is None:
            raise Unauthenticated("the token is not known here; ask for one made by 'hermosis token create'")
        if record.revoked_s is not None:
            raise Unauthenticated(f"token {record.name} was revoked; ask for another")
        if record.expires_s is not None and record.expires_s <= self._clock():
            raise Unauthenticated(f"token {record.name} has expired; ask for another")
        return record.admission()

    def create(
        self,
        name: str,
        *,
        role: str,
        tenant: str = DEFAULT_TENANT,
        sessions: str = EVERY_SESSION,
        lifetime_s: float | None = None,
    ) -> str:
        """Makes a token, which is given back and kept nowhere.

        Raises:
          InvalidRequest: there is one of this name, or a word will not do.
        """
        if not _NAME.match(name):
            raise InvalidRequest(
                f"name is {name[:80]!r}; wanted 1 to 63 letters, digits, '.', '_' and '-'", field="name"
            )
        checked_identity(subject=name, tenant=tenant, role=role, sessions=sessions)
        token = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        now_s = self._clock()
        record = TokenRecord(
            name=name,
            fingerprint=fingerprint(token),
            role=role.upper(),
            tenant=tenant,
            sessions=sessions,
            created_s=now_s,
            expires_s=None if lifetime_s is None else now_s + lifetime_s,
        )
        with self._changing() as records:
            if any(other.name == name and other.tenant == tenant and other.revoked_s is None for other in records):
                raise InvalidRequest(f"there is a token {name}; revoke it first, or choose another name", field="name")
            records.append(record)
        return token

    def revoke(self, name: str, *, tenant: str | None = None) -> TokenRecord:
        """Lets a token in no longer; a running server ends its calls.

        Args:
          tenant: whose it is; None looks at all of them.

        Raises:
          InvalidRequest: no valid token has this name, or those of several tenants have it.
        """
        with self._changing() as records:
            found = [
                place
                for place, record in enumerate(records)
                if record.name == name and record.revoked_s is None and tenant in (None, record.tenant)
            ]
            if not found:
                raise InvalidRequest(f"there is no token {name[:80]!r}; list the tokens to see them", field="name")
            if len(found) > 1:
                tenants = ", ".join(records[place].tenant for place in found)
                raise InvalidRequest(f"tenants {tenants} each have a token {name}; say which one", field="tenant")
            records[found[0]] = replace(records[found[0]], revoked_s=self._clock())
            return records[found[0]]

    @contextmanager
    def _changing(self) -> Iterator[list[TokenRecord]]:
        """The records, to be changed and written as a whole: a reader sees the old file or the new one."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refresh()
            records = self.records
            yield records
            _write(self.path, records)
            self.refresh()
        finally:
            os.close(lock)


def _read(path: Path) -> list[TokenRecord]:
    try:
        records = [TokenRecord(**fields) for fields in json.loads(path.read_bytes())["tokens"]]
        for record in records:
            record.admission()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise InvalidRequest(
            f"{path} cannot be used as a file of tokens ({error}); restore it, or remove it and make new tokens",
            field="data_folder",
        ) from None
    return records


def _write(path: Path, records: list[TokenRecord]) -> None:
    aside = path.with_suffix(".new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump({"version": 1, "tokens": [asdict(record) for record in records]}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
