"""How long the client goes on trying, by an injected clock."""

import pytest

from hermosis_client.errors import ConnectionFailed, CorruptChunk, Overloaded, SessionNotFound
from hermosis_client.retry import Patience, patiently


class Clock:
    """Time that passes only by sleeping, or by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, duration_s: float) -> None:
        self.naps.append(duration_s)
        self.now += duration_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def patience(clock: Clock, timeout_s: float = 10.0, jitter: float = 1.0) -> Patience:
    return Patience(timeout_s, clock=clock, sleep=clock.sleep, jitter=lambda: jitter)


class Attempts:
    """Fails with the given errors, then answers; remembers the deadlines it was given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.deadlines_s: list[float] = []

    def __call__(self, timeout_s: float) -> str:
        self.deadlines_s.append(timeout_s)
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_waits_as_long_as_the_server_says(clock: Clock) -> None:
    attempts = Attempts(Overloaded("", retry_after_s=0.25), Overloaded("", retry_after_s=3.0))
    assert patiently(patience(clock), attempts) == "answer"
    assert clock.naps == [0.25, 3.0]
    assert attempts.deadlines_s == [10.0, 9.75, 6.75]


def test_zero_wait_of_the_server_is_no_busy_loop(clock: Clock) -> None:
    assert patiently(patience(clock), Attempts(Overloaded("", retry_after_s=0.0))) == "answer"
    assert clock.naps == [0.05]


def test_waits_for_an_unreachable_server_double_up_to_two_seconds(clock: Clock) -> None:
    attempts = Attempts(*[ConnectionFailed("") for _ in range(8)])
    assert patiently(patience(clock), attempts) == "answer"
    assert clock.naps == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_jitter_takes_up_to_half_of_a_wait(clock: Clock) -> None:
    assert patiently(patience(clock, jitter=0.0), Attempts(ConnectionFailed(""))) == "answer"
    assert clock.naps == [0.025]


def test_gives_up_with_the_last_error_when_the_time_is_over(clock: Clock) -> None:
    final = Overloaded("last", retry_after_s=5.0)
    attempts = Attempts(Overloaded("", retry_after_s=5.0), final)
    with pytest.raises(Overloaded) as caught:
        patiently(patience(clock), attempts)
    assert caught.value is final
    assert clock.naps == [5.0]  # the next wait would end at the deadline, so it was not begun


def test_never_waits_past_the_deadline_for_an_unreachable_server(clock: Clock) -> None:
    with pytest.raises(ConnectionFailed):
        patiently(patience(clock), Attempts(*[ConnectionFailed("") for _ in range(50)]))
    assert 8.0 <= clock.now - 100.0 < 10.0


@pytest.mark.parametrize("error", [SessionNotFound(""), Overloaded("no retry_after_s")], ids=lambda e: type(e).__name__)
def test_errors_that_waiting_cannot_help_are_final(clock: Clock, error: Exception) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        patiently(patience(clock), attempts)
    assert len(attempts.deadlines_s) == 1
    assert clock.naps == []


def test_a_damaged_chunk_is_sent_again(clock: Clock) -> None:
    assert patiently(patience(clock), Attempts(CorruptChunk(""))) == "answer"


def test_trouble_is_forgotten_after_a_long_good_time(clock: Clock) -> None:
    patient = patience(clock)
    for _ in range(7):
        patient.wait_after(ConnectionFailed(""))
    clock.now += 3600.0  # an attempt that waited long for others before the connection broke
    patient.wait_after(ConnectionFailed(""))
    assert clock.naps[-1] == 0.05
    assert patient.remaining_s() == pytest.approx(10.0 - 0.05)
