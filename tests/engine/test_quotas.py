"""Quotas: the bucket by an injected clock, and the file of tenants."""

from pathlib import Path

import pytest

from hermosis_server.engine.quotas import Quotas, TenantLimits, read_overrides
from hermosis_server.errors import InvalidRequest, QuotaExceeded


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_lets_a_second_through_and_then_its_rate() -> None:
    clock = Clock()
    meter = Quotas(TenantLimits(bytes_per_s=100), clock=clock).meter("t")
    assert meter is not None
    assert meter.take(100) == 0.0
    assert meter.take(50) == pytest.approx(0.5)
    clock.now_s += 0.5
    assert meter.take(0) == 0.0
    clock.now_s += 1000.0  # It holds a second's worth, however long nobody came.
    assert meter.take(300) == pytest.approx(2.0)


def test_what_can_come_again_is_refused_until_what_came_is_paid_for() -> None:
    clock = Clock()
    meter = Quotas(TenantLimits(bytes_per_s=100), clock=clock).meter("t")
    assert meter is not None
    meter.require(250)  # One that is larger than the bucket must pass some time.
    with pytest.raises(QuotaExceeded, match="tenant t") as refused:
        meter.require(1)
    assert refused.value.retry_after_s == pytest.approx(1.5, abs=0.01)
    assert refused.value.metadata == {"tenant": "t", "limit": "tenant_bytes_per_s"}
    clock.now_s += refused.value.retry_after_s or 0.0
    meter.require(1)


def test_a_tenants_callers_share_a_bucket_and_other_tenants_have_their_own() -> None:
    quotas = Quotas(TenantLimits(bytes_per_s=100), {"free": TenantLimits()}, clock=Clock())
    assert quotas.meter("a") is quotas.meter("a")
    assert quotas.meter("a") is not quotas.meter("b")
    assert quotas.meter("free") is None


def test_a_file_says_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[acme]\nsessions = 7\n[big-one]\nbytes_per_s = 0\n")
    limits = TenantLimits(sessions=1, device_bytes=2, bytes_per_s=3)
    assert read_overrides(file, limits) == {
        "acme": TenantLimits(sessions=7, device_bytes=2, bytes_per_s=3),
        "big-one": TenantLimits(sessions=1, device_bytes=2, bytes_per_s=0),
    }


@pytest.mark.parametrize(
    "text",
    [
        "[acme]\nseats = 1",
        "[acme]\nsessions = -1",
        "[acme]\nsessions = true",
        "acme = 3",
        "[acme",
        "[a]\nsessions = 1.5",
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"tenants\.toml"):
        read_overrides(file, TenantLimits())
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_overrides(tmp_path / "none.toml", TenantLimits())
