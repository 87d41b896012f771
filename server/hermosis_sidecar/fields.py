"""Fields: the server names a faulty field as its own messages have it; a caller looks for it in what it sent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hermosis_client import errors

_HAMILTONIAN = "optimizer.hamiltonian."


@contextmanager
def renamed(name: Callable[[str], str]) -> Iterator[None]:
    """Passes on errors with the field renamed, where there is one."""
    try:
        yield
    except errors.HermosisError as error:
        if error.field:
            error.field = name(error.field)
        raise


def of_new_session(field: str) -> str:
    """In the JSON of a session to be made."""
    return f"spec.{field}" if field.partition(".")[0] in ("optimizer", "labels", "display_name") else field


def of_edit(field: str) -> str:
    """In the JSON of an edit.

    Of the optimizer it can change the thermal profile only, so that is to blame; so is the new consistency where what
    stays of the spec does not go with it.
    """
    if field == "etag":
        return "If-Match"
    if field.startswith("spec."):
        return "consistency.workers" if field.startswith("spec.aggregation.") else "consistency"
    path = field.removeprefix("edit.").removeprefix(_HAMILTONIAN)
    return "thermal_profile" if field.startswith("optimizer") and not path.startswith("thermal_profile") else path
