"""Log lines: ids first, fields apart, no secrets; and every line in the code is written so."""

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermosis.lines import IDS, LAST, Lines, as_json, as_text

ROOT = Path(__file__).resolve().parents[2]
LEVELS = frozenset({"debug", "info", "warning", "error", "critical", "exception"})


def record(message: str, *arguments: object, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("there", logging.WARNING, "there.py", 1, message, arguments, exc_info)


def told(message: str, *arguments: object, exc_info: Any = None, **ids: object) -> dict[str, Any]:
    line = Lines(as_json, lambda: ids).format(record(message, *arguments, exc_info=exc_info))
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


def test_fields_are_apart_and_ids_come_first() -> None:
    fields = told("event=not_durable problem=%r session=%s", "the disk is full", "a", call="c1")
    assert list(fields) == ["call", "session", "event", "problem", "level", "logger", "timestamp"]
    assert fields["problem"] == "the disk is full"
    assert (fields["session"], fields["event"], fields["level"]) == ("a", "not_durable", "warning")


def test_numbers_stay_numbers_and_are_as_exact_as_they_were_written() -> None:
    fields = told("event=warm seconds=%.1f sessions=%d device=cpu", 1.23456, 3)
    assert (fields["seconds"], fields["sessions"], fields["device"]) == (1.2, 3, "cpu")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("Task exception was never retrieved", ()),
        ("%s took %.3f seconds", ("this", 1.0)),
        ("a=%s b", (1,)),
        ("rate 50% a=1", ()),
        ("", ()),
    ],
)
def test_lines_of_others_are_the_event_as_they_stand(message: str, arguments: tuple[object, ...]) -> None:
    assert told(message, *arguments).get("event", "") == record(message, *arguments).getMessage()


def test_arguments_that_do_not_fit_are_nobodys_end() -> None:
    with pytest.raises(TypeError):  # as it is with any formatter; logging then prints it and goes on
        told("a=%s b=%s", 1)


def test_an_id_that_the_line_names_is_nearer_than_the_calls() -> None:
    assert told("event=step_failed session=%s", "inner", session="outer")["session"] == "inner"


def test_what_is_empty_is_left_out() -> None:
    assert "request" not in told("event=x", request="", call="c")


def test_people_read_when_and_how_grave_and_then_ids_and_the_trace_below() -> None:
    try:
        raise ValueError("bad token hmt_SECRET")
    except ValueError as error:
        made = record("event=step_failed problem=%r session=%s", "two words", "a")
        made.exc_info = (type(error), error, error.__traceback__)
    first, *below = Lines(as_text, lambda: {"call": "c1"}).format(made).splitlines()
    assert re.fullmatch(r"\S+T\S+ warning  call=c1 session=a event=step_failed problem='two words' logger=there", first)
    assert below[0].startswith("Traceback")
    assert "hmt_" not in below[-1]
    assert "[secret]" in below[-1]


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    for show in (as_text, as_json):
        assert "\n" not in Lines(show, dict).format(record("event=call reason=%r", "one\ntwo"))


def calls() -> Iterator[tuple[str, str]]:
    """Every line that our code writes, with its place."""
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr in LEVELS:
                of = function.value
                if isinstance(of, ast.Name) and of.id in ("logger", "_log"):
                    yield f"{path.name}:{node.lineno}", str(node.args[0].value)


LINES = list(calls())


def test_there_are_lines_to_look_at() -> None:
    assert len(LINES) >= 25


@pytest.mark.parametrize(("place", "message"), LINES, ids=[place for place, _ in LINES])
def test_every_line_of_ours_is_an_event_with_fields(place: str, message: str) -> None:
    placeholders = re.findall(r"%[.0-9]*([a-z])", message)
    arguments = [1.5 if kind == "f" else 1 for kind in placeholders]
    fields = told(message, *arguments)
    assert message.startswith("event=")
    assert re.fullmatch(r"\w+", str(fields["event"]))
    assert set(fields) - set(LAST) - set(IDS) <= set(re.findall(r"(\w+)=", message))
    assert len(fields) == message.count("=") + 3  # level, logger, timestamp
