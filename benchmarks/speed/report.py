"""The table on the screen, the page of markdown and the same as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.speed.goals import Figure, Result
from benchmarks.speed.lab import Settings
from benchmarks.speed.statistics import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what it was measured.

    Attributes:
      rows_s: how long each row took.
      steal, others: over the passes, in cores; see statistics.Load.
    """

    date: str
    command: str
    settings: Settings
    machine: dict[str, str]
    peers: dict[str, str]  # package: version
    rows_s: dict[str, float]
    steal: Spread
    others: Spread


def number(value: float) -> str:
    """Three digits, thousands as they are."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: Spread) -> str:
    if values.low == values.high:
        return number(values.median)
    return f"{number(values.median)} ({number(values.low)}–{number(values.high)})"


def label(figure: Figure) -> str:
    return figure.label if figure.judged else f"{figure.label} (beside the goal)"


def ratio(figure: Figure) -> str:
    """A ratio, with ~ and the number of passes under other load where there are any."""
    return spread(figure.ratio) + (f" ~{figure.disturbed}" if figure.disturbed else "")


def show(console: Console, results: Sequence[Result]) -> None:
    """Prints goal, figure and verdict, then why some have none."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for column in ("what", "goal", "figure", "verdict"):
        table.add_column(column, no_wrap=column != "what", justify="left" if column == "what" else "right")
    for each in results:
        table.add_row(f"[bold]{each.goal.name}[/]: {each.goal.what}", each.goal.in_words(), "", _coloured(each))
        for one in each.figures:
            table.add_row(f"  {label(one)}", "", ratio(one), "")
    console.print(table)
    for each in results:
        if each.failure:
            console.print(f"{each.goal.name} is not measured: {each.failure}", highlight=False, markup=False)
    if any(one.disturbed for each in results for one in each.figures):
        console.print("~ so many of the passes were under other load", highlight=False)
    console.print(summary(results), style="bold", highlight=False)


def _coloured(each: Result) -> str:
    if each.met is None:
        return each.verdict
    clear = each.verdict == "met" or (not each.met and not any(figure.disturbed for figure in each.judged))
    return f"[{('green' if each.met else 'red') if clear else 'yellow'}]{each.verdict}[/]"


def summary(results: Sequence[Result]) -> str:
    """Met, missed and open, in one sentence."""
    met = sum(each.met is True for each in results)
    missed = [each.goal.name for each in results if each.met is False]
    unknown = [each.goal.name for each in results if each.failure]
    words = f"{met} of {met + len(missed)} measured goals are met"
    if missed:
        words += f"; missed: {', '.join(missed)}"
    if unknown:
        words += f"; not measured: {', '.join(unknown)}"
    if loaded := [each.goal.name for each in results if any(figure.disturbed for figure in each.judged)]:
        words += f"; to be measured again without other load: {', '.join(loaded)}"
    return f"{words}."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines] + [""]


def page(results: Sequence[Result], conditions: Conditions, picture: str) -> str:
    """The page of markdown.

    Args:
      picture: file name of the plot; empty for none.
    """
    settings = conditions.settings
    lines = [
        f"# Speed, {conditions.date}",
        "",
        f"**{summary(results)}**",
        "",
        f"{settings.passes} passes of about {settings.seconds:g} s of each case, in turns, after "
        f"{settings.warm_up_s:g} s of warm-up. A ratio is the median (least–most) of the ratios pass by pass. Passes "
        "under other load (more than 0.05 cores of steal or 0.25 of other processes) are left out where three others "
        "are there; else they count, and ~ and how many say so. Absolute numbers belong to this run alone.",
        "",
    ]
    rows = []
    for each in results:
        rows.append([f"**{each.goal.name}**: {each.goal.what}", each.goal.in_words(), "", "", "", each.verdict])
        for one in each.figures:
            theirs = "" if one.theirs is None else number(one.theirs.median)
            cells = [label(one), "", ratio(one), f"{number(one.ours.median)} {one.unit}".strip()]
            rows.append([*cells, theirs, ""])
    lines += markdown_table(["what", "goal", "ratio", "Hermosis", "the other", "verdict"], rows)
    if picture:
        lines += [f"![Growth of sessions and of streams]({picture})", ""]
    reasons = [f"- {each.goal.name} is not measured: {each.failure}" for each in results if each.failure]
    lines += ["## Not measured", "", *reasons, ""] if reasons else []
    notes = list(dict.fromkeys(note for each in results for note in each.notes))
    lines += ["## Notes", "", *(f"- {note}" for note in notes), ""] if notes else []
    lines += [
        "## Conditions",
        "",
        f"Command: `{conditions.command}`, {sum(conditions.rows_s.values()):.0f} s: "
        f"{', '.join(f'{name} {took:.0f}' for name, took in conditions.rows_s.items())}. "
        f"Other load in the passes: {spread(conditions.others)} cores of other processes, "
        f"{spread(conditions.steal)} of steal.",
        "",
    ]
    lines += markdown_table(["what", "which"], [*conditions.machine.items(), *conditions.peers.items()])
    return "\n".join(lines)


def record(results: Sequence[Result], conditions: Conditions) -> str:
    """The JSON beside the page; null stands for a number that is not there."""
    values = {
        "conditions": asdict(conditions),
        "summary": summary(results),
        "results": [asdict(each) | {"verdict": each.verdict} for each in results],
    }
    return json.dumps(plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The same without infinities and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
