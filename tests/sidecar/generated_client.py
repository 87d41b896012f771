"""What the test of the generated client runs, in the environment of the generator: one session's life.

Arguments: the sidecar's address. Prints what it saw as one line of JSON.
"""

import json
import sys

from generated import Client
from generated.api.sessions import close_session, create_session, edit_session, list_sessions, show_session
from generated.models import NewSession, Problem, SessionEdit

client = Client(base_url=sys.argv[1])
new = NewSession.from_dict(
    {
        "session_id": "generated",
        "spec": {
            "layout": {"tensors": [{"name": "w", "shape": [4]}]},
            "optimizer": {"recipe": {"name": "sgd", "parameters": {"lr": 0.5}}},
            "labels": {"by": "generator"},
        },
    }
)
made = create_session.sync(client=client, body=new)
listed = list_sessions.sync(client=client, label=["by=generator"], limit=5)
edit = SessionEdit.from_dict({"lr_scale": 0.25, "display_name": "edited"})
edited = edit_session.sync("generated", client=client, body=edit, if_match=made.etag)
stale = edit_session.sync("generated", client=client, body=edit, if_match=made.etag)
closed = close_session.sync("generated", client=client)
gone = show_session.sync("generated", client=client)
assert isinstance(stale, Problem)
assert isinstance(gone, Problem)
seen = {
    "made": made.status,
    "listed": [(each.session_id, each.labels.to_dict(), each.reading) for each in listed.sessions],
    "edited": (edited.lr_scale, edited.spec.display_name),
    "stale": (stale.status, stale.reason),
    "closed": closed.status,
    "gone": (gone.status, gone.reason),
}
print(json.dumps(seen))
