"""What was measured, as a table and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.slow_links import task
from benchmarks.slow_links.cases import LR, MODES, SLOWER, WORKERS, Measured, Trouble

HEAD = "| mode | codec | seconds to the loss | steps | contributions | final loss | KB up | KB down |"
RULE = "|---|---|---|---|---|---|---|---|"


def row(measured: Measured) -> str:
    """A case as a line of the table."""
    reached = f"{measured.reached_s:.1f}" if measured.reached_s is not None else f"not in {measured.seconds:.0f}"
    return (
        f"| {measured.mode} | {measured.codec} | {reached} | {measured.steps} | {measured.contributions} "
        f"| {measured.final_loss:.3f} | {measured.up_bytes / 1e3:.0f} | {measured.down_bytes / 1e3:.0f} |"
    )


def page(date: str, trouble: Trouble, machine: dict[str, str], cases: Sequence[Measured]) -> str:
    """All of it, in words first."""
    line = trouble.line
    return "\n".join(
        [
            f"# Many workers over slow links, {date}",
            "",
            f"{WORKERS} worker processes train a network of {_parameters():,} parameters on handwritten digits until "
            f"the loss over all images is {trouble.target:g}, for at most {trouble.limit_s:g} s a case. Each comes to "
            f"the server over a line of its own: {line.rate * 8 / 1e6:g} Mbit/s, a round trip of "
            f"{line.rtt_s * 1e3:g} ms, {line.loss:.0%} of the segments lost. A gradient takes "
            f"{trouble.compute_s * 1e3:g} ms; the last worker takes {SLOWER:g} times as long, and its line has a tenth "
            f"of the rate. Every {trouble.kill_every_s:g} s one of the others is killed (SIGKILL), and started again "
            f"{trouble.away_s:g} s later.",
            "",
            f"AdamW with a learning rate of {task.LR:g}, and of {LR['async']:g} where each contribution is a step. "
            f"`local` takes {MODES['local'].local_steps} steps of it on each worker, then the mean of where they are.",
            "",
            f"`quorum` and `local` step with {MODES['quorum'].quorum} of {WORKERS}; late ones are carried into the "
            f"next round, in `local` dropped. In `bounded` waits who is more than {MODES['bounded'].max_staleness} "
            "contributions ahead of the slowest.",
            "",
            "**The lines are emulated** by a TCP proxy (`benchmarks/links.py` says how): what loss does to TCP is "
            "arithmetic, not packets. With 1 % of loss and 50 ms, congestion control lets through about 2.9 Mbit/s, "
            "whatever the line could carry. Absolute times belong to this model; what is to be read is their order.",
            "",
            "Each case is one run. KB are of a contribution, each way, with all that TCP carried: first pulls and what "
            "was cut off included.",
            "",
            HEAD,
            RULE,
            *map(row, cases),
            "",
            f"![loss by time](slow-links-{date}.png)",
            "",
            f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; "
            f"Python {machine['python']}, torch {machine['torch']}, grpcio {machine['grpcio']}.",
            "",
        ]
    )


def recorded(path: Path) -> list[Measured]:
    """Cases of a record that was written before; none where there is none."""
    return [Measured(**case) for case in json.loads(path.read_text())["cases"]] if path.exists() else []


def record(date: str, trouble: Trouble, machine: dict[str, str], cases: Sequence[Measured]) -> str:
    """All numbers."""
    return json.dumps(
        {"date": date, "trouble": asdict(trouble), "machine": machine, "cases": [asdict(case) for case in cases]}
    )


def draw(path: Path, trouble: Trouble, cases: Sequence[Measured]) -> None:
    """A panel a mode, a curve a codec."""
    modes = list(dict.fromkeys(case.mode for case in cases))
    codecs = list(dict.fromkeys(case.codec for case in cases))
    figure = Figure(figsize=(4 * len(modes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(modes), squeeze=False, sharey=True)[0]
    for panel, mode in zip(panels, modes, strict=True):
        for case in cases:
            if case.mode == mode:
                seconds, _, losses = zip(*case.curve, strict=True)
                panel.plot(seconds, losses, label=case.codec, color=f"C{codecs.index(case.codec)}", linewidth=1.4)
        panel.axhline(trouble.target, color="black", linewidth=0.8, linestyle=":")
        panel.set(title=mode, xlabel="seconds", xlim=(0, trouble.limit_s), yscale="log")
    panels[0].set_ylabel("loss over all images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(codecs), frameon=False)
    figure.savefig(path, dpi=110)


def _parameters() -> int:
    return sum(parameter.numel() for parameter in task.network().parameters())
