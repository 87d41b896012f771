"""Quotas: what each tenant may take of the server, so that none of them can take it all."""

import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hermosis_server.errors import InvalidRequest, QuotaExceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """Limits of one tenant; zero is none.

    Attributes:
      sessions:     at a time.
      device_bytes: of device memory that they hold, or host memory while they idle.
      bytes_per_s:  received from its callers, over a second or longer.
    """

    sessions: int = 0
    device_bytes: int = 0
    bytes_per_s: int = 0


class Quotas:
    """The limits of all tenants. Used from the rpc thread only.

    Args:
      limits:    of a tenant that has none of its own.
      overrides: limits of some tenants, by name.
      clock:     monotonic seconds.
    """

    def __init__(
        self,
        limits: TenantLimits | None = None,
        overrides: Mapping[str, TenantLimits] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or TenantLimits()
        self._overrides = dict(overrides or {})
        self._clock = clock
        self._meters: dict[str, Meter] = {}

    def of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        return self._overrides.get(tenant, self._limits)

    def require_sessions(self, tenant: str, count: int) -> None:
        """Raises QuotaExceeded when a tenant would have more sessions than it may."""
        _require(tenant, "tenant_sessions", count, self.of(tenant).sessions, "close a session first")

    def require_device_bytes(self, tenant: str, size_bytes: int) -> None:
        """Raises QuotaExceeded when a tenant's sessions would hold more memory than they may."""
        _require(tenant, "tenant_device_bytes", size_bytes, self.of(tenant).device_bytes, "close a session first")

    def meter(self, tenant: str) -> "Meter | None":
        """What measures a tenant's bytes; None where they are not limited."""
        rate = self.of(tenant).bytes_per_s
        if not rate:
            return None
        # A tenant comes from a token, a claim or a certificate, so there are as many as their makers wanted.
        return self._meters.setdefault(tenant, Meter(tenant, rate, clock=self._clock))


def _require(tenant: str, limit: str, wanted: int, allowed: int, cure: str) -> None:
    if allowed and wanted > allowed:
        raise QuotaExceeded(
            f"tenant {tenant} would take {wanted} of {limit}, and may take {allowed}; {cure}",
            metadata={"tenant": tenant, "limit": limit},
        )


class Meter:
    """A token bucket that holds a second's worth. What is larger is let through and waited for afterwards.

    Args:
      tenant: that is measured.
      rate:   bytes a second.
      clock:  monotonic seconds.
    """

    def __init__(self, tenant: str, rate: int, *, clock: Callable[[], float]) -> None:
        self._tenant = tenant
        self._rate = rate
        self._clock = clock
        self._left_bytes = float(rate)
        self._filled_s = clock()

    def take(self, size_bytes: int) -> float:
        """Counts bytes that have come; seconds to wait before more may."""
        self._fill()
        self._left_bytes -= size_bytes
        return max(0.0, -self._left_bytes / self._rate)

    def require(self, size_bytes: int) -> None:
        """Counts bytes of a call that can come again later.

        Raises:
          QuotaExceeded: more has come than may; says when to try again. Nothing was counted.
        """
        self._fill()
        if self._left_bytes <= 0:
            raise QuotaExceeded(
                f"tenant {self._tenant} sends more than {self._rate} bytes a second, its tenant_bytes_per_s",
                retry_after_s=-self._left_bytes / self._rate + 1e-3,
                metadata={"tenant": self._tenant, "limit": "tenant_bytes_per_s"},
            )
        self._left_bytes -= size_bytes

    def _fill(self) -> None:
        now_s = self._clock()
        self._left_bytes = min(self._rate, self._left_bytes + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s


def read_overrides(path: Path, limits: TenantLimits) -> dict[str, TenantLimits]:
    """Limits by tenant out of a TOML file: a table for each, with those that differ from `limits`.

    Raises:
      InvalidRequest: it cannot be read, or says something that is no limit.
    """
    names = {field.name for field in fields(TenantLimits)}
    try:
        with path.open("rb") as file:
            tables: dict[str, Any] = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"the file of tenants {path} cannot be read ({error})", field="tenants") from None
    for tenant, table in tables.items():
        wrong = not isinstance(table, dict) or [
            name for name, value in table.items() if name not in names or type(value) is not int or value < 0
        ]
        if wrong:
            raise InvalidRequest(
                f"{path}: tenant {tenant} has {wrong if wrong is not True else 'no table'}; wanted whole numbers for "
                f"{', '.join(sorted(names))}",
                field="tenants",
            )
    return {tenant: replace(limits, **table) for tenant, table in tables.items()}
