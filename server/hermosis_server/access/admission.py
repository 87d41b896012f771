"""Admission: the answer to "who are you?", and how long it holds."""

from dataclasses import dataclass

from hermosis_server.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """An identity that was proved.

    Attributes:
      expires_s:   seconds since 1970 at which the proof ends; None means never.
      fingerprint: of the token, by which it can be revoked; empty for one that cannot be.
    """

    identity: Identity
    expires_s: float | None = None
    fingerprint: str = ""
