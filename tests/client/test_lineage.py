"""Whether a worker goes on by itself: the rule that Worker and Fleet share."""

import pytest

from hermosis.v1 import gradient_pb2
from hermosis_client.lineage import goes_on

KNOWN = {"generation": 3, "step": 10, "following": 11}


def opened(**facts: object) -> gradient_pb2.SessionOpened:
    """A session that was replaced last at generation 2, recovered at steps 4 (known) and 10, and lost nothing."""
    right = {"generation": 4, "replaced_generation": 2, "recovered_steps": [4, 10], "next_sequence": 11, "step": 10}
    return gradient_pb2.SessionOpened(**(right | facts))


@pytest.mark.parametrize(
    ("facts", "known", "right"),
    [
        ({}, {}, True),
        ({"next_sequence": 12, "recovered_steps": [4, 11], "step": 11}, {}, True),
        ({"recovered_steps": [4, 9]}, {}, False),
        ({"recovered_steps": [4, 9, 12], "generation": 5}, {}, False),
        ({"recovered_steps": [4, 11, 12], "generation": 5}, {}, True),
        ({"recovered_steps": [4, 10], "replaced_generation": 4}, {}, False),
        ({"recovered_steps": [10] * 64, "generation": 80}, {}, False),
        ({"next_sequence": 10}, {}, False),
        ({"next_sequence": 13}, {}, False),
        ({}, {"step": None}, False),
        ({"recovered_steps": [12, 10]}, {}, True),
    ],
    ids=[
        "nothing was lost",
        "only the answer was lost",
        "a step was lost",
        "a step was lost two crashes ago",
        "two crashes took nothing",
        "another state was put in its place",
        "more crashes than are told",
        "a contribution was lost",
        "somebody else contributed under the name",
        "no step is held",
        "what was lost before it was known is no loss",
    ],
)
def test_a_worker_goes_on_where_nothing_that_it_builds_on_was_lost(facts: dict, known: dict, right: bool) -> None:
    assert goes_on(opened(**facts), **(KNOWN | known)) is right
