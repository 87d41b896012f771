"""The client that docs/protocol.md shows is run as it stands there."""

import re
from pathlib import Path
from typing import Any

from tests.forking import WarmServer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


def test_the_whole_client_of_the_page_trains() -> None:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    program = found[1]
    with WarmServer() as server:
        names: dict[str, Any] = {}
        exec(program.replace("127.0.0.1:50051", server.address), names)
        names["channel"].close()
    assert names["answer"].result.step == 1000
    first_loss, last_loss = 25.0, sum(x * x for x in names["w"])
    assert last_loss < first_loss / 1.5
