"""The readers of strangers' bytes, on right messages, on damaged ones and on any others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import guided
from tests.fuzz.messages import damaged
from tests.fuzz.parsers import PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_a_reader_reads_or_refuses(name: str) -> None:
    parser = PARSERS[name]
    rights = [seed.SerializeToString() for seed in parser.seeds]
    for raw in rights:
        parser.check(raw)

    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(st.one_of(st.sampled_from(rights).flatmap(damaged), st.binary(max_size=200)))
    def check(raw: bytes) -> None:
        parser.check(raw)

    check()


def test_every_reader_can_be_fuzzed_by_coverage() -> None:
    assert [target.name for target in guided.TARGETS] == list(PARSERS)
