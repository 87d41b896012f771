"""When contributions become a step, as the page tells, makes and edits it; and whom a round waits for."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.sidecar.browser.conftest import DESKTOP, PHONE, OpenPage, Page, does, expect, fits
from tests.sidecar.conftest import Sidecar

from hermosis_client import Aggregation, Client, Consistency

SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


def told(page: Page) -> dict[str, str]:
    """What the session's view says of its rounds."""
    rounds = page.get_by_role("region", name="Rounds")
    expect(rounds).to_be_visible()
    facts = rounds.locator("dl > div").all()
    return {fact.locator("dt").inner_text(): fact.locator("dd").first.inner_text() for fact in facts}


def labelled(place: Any, label: str) -> Any:
    return place.get_by_label(label, exact=True)


@SIZES
def test_a_session_is_made_with_every_rule_of_its_rounds(
    sidecar: Sidecar, client: Client, open_page: OpenPage, size: dict[str, int]
) -> None:
    name = f"rules-{size['width']}"
    page = open_page(f"{sidecar.address}/#/create", size)
    expect(page.locator("#link")).to_have_text("Connected")
    labelled(page, "Id").fill(name)
    expect(labelled(page, "Quorum")).to_have_count(0)
    labelled(page, "Consistency").select_option("LOCAL")
    for label, text in {
        "Workers": "5",
        "Quorum": "4",
        "Deadline": "2.5",
        "Local steps": "8",
        "Lease": "30",
        "Gradient, at most": "1.5",
    }.items():
        labelled(page, label).fill(text)
    expect(labelled(page, "Staleness, at most")).to_have_count(0)
    labelled(page, "Late contributions").select_option("CARRY")
    labelled(page, "Staleness, at most").fill("3")
    labelled(page, "Weight of late gradients").select_option("AS_THEN")
    labelled(page, "Aggregation").select_option("KRUM")
    labelled(page, "Quarantine").check()
    labelled(page, "Hostile workers").fill("3")
    assert fits(page)
    page.get_by_role("button", name="Make the session").click()
    hostile = labelled(page, "Hostile workers")
    expect(hostile).to_be_focused()
    expect(hostile).to_have_accessible_description(re.compile("KRUM needs 6 workers"))
    hostile.fill("2")
    page.get_by_role("button", name="Make the session").click()

    expect(page.get_by_role("heading", name=name)).to_be_visible()
    info = client.session(name).info()
    assert info.consistency == Consistency(
        mode="local",
        workers=5,
        quorum=4,
        deadline_s=2.5,
        max_staleness=3,
        local_steps=8,
        late="carry",
        staleness_weight="as_then",
        lease_s=30,
    )
    assert info.aggregation == Aggregation(rule="krum", byzantine=2, quarantine=True, clip_norm=1.5)
    assert told(page) == {
        "Consistency": "LOCAL",
        "Workers": "5",
        "Quorum": "4",
        "Deadline": "2.5 s",
        "Local steps": "8",
        "Late contributions": "CARRY",
        "Staleness, at most": "3",
        "Weight of late gradients": "AS_THEN",
        "Lease": "30 s",
        "Aggregation": "KRUM",
        "Hostile workers": "2",
        "Gradient, at most": "1.5",
        "Quarantine": "on",
    }
    assert fits(page)
    client.session(name).close()


@SIZES
def test_the_consistency_of_a_running_session_is_edited_after_a_question(
    sidecar: Sidecar, client: Client, open_page: OpenPage, size: dict[str, int]
) -> None:
    before = Consistency(mode="quorum", workers=3, quorum=2, deadline_s=4, lease_s=60)
    with client.create_session({"w": (2,)}, "sgd", consistency=before) as session:
        session.initialise({"w": np.ones(2, np.float32)})
        page = open_page(f"{sidecar.address}/#/session/{session.session_id}", size)
        page.get_by_role("button", name="Consistency").press("Enter")
        question = page.get_by_role("dialog")
        expect(question).to_be_visible()
        for label, text in {"Workers": "3", "Quorum": "2", "Deadline": "4", "Lease": "60"}.items():
            expect(labelled(question, label)).to_have_value(text)
        labelled(question, "Quorum").fill("9")
        page.keyboard.press("Enter")
        quorum = labelled(question, "Quorum")
        expect(quorum).to_be_focused()
        expect(quorum).to_have_accessible_description(re.compile("at most the 3 workers"))
        assert fits(page)
        page.keyboard.press("Escape")
        expect(question).to_have_count(0)
        unchanged = session.info().consistency
        assert (unchanged.mode, unchanged.quorum) == ("quorum", 2)

        def fill(question: Any) -> None:
            labelled(question, "Consistency").select_option("BOUNDED")
            labelled(question, "Workers").fill("2")
            labelled(question, "Ahead, at most").fill("7")
            labelled(question, "Lease").fill("")

        does(page, "Consistency", fill)
        after = session.info().consistency
        assert after == Consistency(mode="bounded", workers=2, max_staleness=7, late=unchanged.late)
        expect(page.get_by_role("region", name="Rounds")).to_contain_text("BOUNDED")
        facts = told(page)
        assert (facts["Ahead, at most"], facts["Lease"]) == ("7", "never")
        assert "Quorum" not in facts


def test_who_is_awaited_and_who_is_lost_is_told(sidecar: Sidecar, client: Client, open_page: OpenPage) -> None:
    with client.create_session({"w": (2,)}, "sgd", workers=2) as session:
        session.initialise({"w": np.ones(2, np.float32)})
        with ThreadPoolExecutor(1) as pool, session.worker("ann") as ann, session.worker("bob") as bob:
            first = pool.submit(ann.exchange, {"w": np.ones(2)}, sample_count=3)
            bob.exchange({"w": np.ones(2)}, sample_count=1)
            first.result(30)
            page = open_page(f"{sidecar.address}/#/session/{session.session_id}")
            workers = page.get_by_role("region", name="Workers").first
            row = {name: workers.locator("tr", has=page.get_by_text(name, exact=True)) for name in ("ann", "bob")}
            expect(row["ann"]).to_contain_text("0.75")
            expect(row["bob"]).to_contain_text("0.25")
            expect(page.locator("#awaited")).to_have_text("No round waits for anybody.")
            second = pool.submit(ann.exchange, {"w": np.ones(2)})
            expect(page.locator("#awaited")).to_have_text("The round waits for bob.")
            expect(row["bob"].get_by_text("awaited", exact=True)).to_be_visible()
            session.update(consistency=Consistency(workers=2, lease_s=0.5))
            second.result(30)
            expect(row["bob"].get_by_text("lost", exact=True)).to_be_visible()
            expect(page.locator("#awaited")).to_have_text("No round waits for anybody.")
