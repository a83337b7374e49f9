"""A run on one self-contained HTML page: no script, no request to anywhere, light and dark."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from markupsafe import Markup

from misotune.report.chart import NUM_COLORS, chart, legend
from misotune.report.html import PAGE_STYLE, page_template
from misotune.report.reading import RunRecord, read_run
from misotune.report.series import Curve, make_curve, quantile
from misotune.report.words import MISSING, duration, facts, number, size
from misotune.runs import RunFolder
from misotune.storage import write_whole

RENEW_EVERY_S = 30

_KIND_TITLES = {"source": "loss by source", "role": "loss by role of the input", "inputs": "loss by number of inputs"}
# What has a place of its own on the page.
_NOT_IN_THE_PLAN_TABLE = ("data", "memory", "disk", "name")
_GIB = 2**30
_NEWEST_EVENTS, _MOST_EVENTS = 8, 400


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart and, if it has several curves, their names."""

    chart: Markup
    legend: Markup | None = None


def write_report(run: RunFolder, *, is_running: bool | None = None) -> None:
    """Writes `report.html` from the other files of a run folder.

    Args:
        run: The run.
        is_running: Whether it goes on just now, so that the page renews itself. None: not known.

    Raises:
        UsageError: It is no run's folder.
        OSError: The page cannot be written.
    """
    page = render_report(read_run(run), datetime.now(UTC), is_running=is_running)
    write_whole(run.report, page.encode("utf-8", errors="replace"))


def render_report(record: RunRecord, now: datetime, *, is_running: bool | None = None) -> str:
    """Returns the page's HTML.

    Args:
        record: The run.
        now: The time that the page bears.
        is_running: Whether the run goes on just now; None: not known.
    """
    template, css = page_template(PAGE_STYLE.parent, PAGE_STYLE)
    kinds = {kind: group_rows(record, kind) for kind in record.kinds}
    return template.render(
        record=record,
        plan=record.plan,
        css=css,
        now=now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        renew_every_s=RENEW_EVERY_S if is_running else None,
        state=_state(record, is_running=is_running),
        share=record.last.get("step", 0) / record.num_steps if record.num_steps else 0.0,
        figures=_figures(record),
        pictures=_pictures(record),
        kinds={_KIND_TITLES.get(kind, f"loss by {kind}"): rows for kind, rows in kinds.items()},
        throughput=_throughput(record),
        data=_data_account(record.plan.get("data")),
        memory=_memory(record),
        disk=list(facts(_bytes(record.plan.get("disk")))),
        plan_facts=list(facts({key: value for key, value in record.plan.items() if key not in _NOT_IN_THE_PLAN_TABLE})),
        environment=list(facts(record.environment)),
        commands=_commands(record),
        newest=record.events[: -_NEWEST_EVENTS - 1 : -1],
        older=record.events[-_NEWEST_EVENTS - 1 : -_MOST_EVENTS - 1 : -1],
        number=number,
    )


def group_rows(record: RunRecord, kind: str) -> list[tuple[str, str, str, str, str]]:
    """Returns of each group: its name, first and last loss, share of the loss's tokens, trained tokens."""
    rows: list[tuple[str, str, str, str, str]] = []
    total = sum(group.tokens for group in record.kinds[kind].values())
    for name, group in record.kinds[kind].items():
        first = next((value for value in group.losses if math.isfinite(value)), None)
        last = number(make_curve(name, group.steps, group.losses).last)
        share = f"{group.tokens / total:.1%}" if total else MISSING
        rows.append((name, MISSING if first is None else number(first), last, share, f"{group.tokens:,}"))
    return rows


def _state(record: RunRecord, *, is_running: bool | None) -> tuple[str, str]:
    """Returns a word for the run's state, and a sentence; the word is a class of the page's style too."""
    if record.is_finished:
        return "finished", f"the trained model is in {record.path / 'final'}"
    if is_running:
        return "running", f"this page renews itself every {RENEW_EVERY_S} seconds"
    ends = [event for event in record.events if event["kind"] in ("start", "resume", "stop")]
    if ends and ends[-1]["kind"] == "stop":
        return "stopped", ends[-1]["text"]
    return "open", "no end is recorded: it goes on, or was killed"


def _figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """Returns (name, value, what it is) of the few numbers that come first."""
    if not record.metrics:
        return []
    steps, losses = record.steps, record.column("loss")
    step, total = int(record.last["step"]), record.num_steps
    left = (total - step) * _seconds_per_step(record)
    time_text = f"about {duration(left)} left" if step < total and not record.is_finished else "in all"
    memory = [value for value in record.column("peak_memory_gib") if math.isfinite(value)]
    return [
        ("step", f"{step:,} of {total:,}", f"epoch {number(float(record.last.get('epoch', math.nan)))}"),
        ("loss", number(make_curve("", steps, losses).last), f"smoothed; {number(losses[0])} at step {steps[0]:,.0f}"),
        ("tokens/s", number(quantile(record.column("total_tokens_per_s"), 0.5)), "median, all tokens"),
        ("memory", size(max(memory) * _GIB) if memory else MISSING, "peak, main process"),
        ("time", duration(record.seconds), time_text),
    ]


def _seconds_per_step(record: RunRecord) -> float:
    """Returns the mean over the last fifty lines, without the first of all: it may be slow."""
    lines = list(zip(record.steps, record.step_seconds, strict=True))[-51:]
    if len(lines) < 2:
        return record.seconds / max(record.steps[-1], 1)
    return sum(seconds for _, seconds in lines[1:]) / max(lines[-1][0] - lines[0][0], 1)


def _pictures(record: RunRecord) -> list[Picture]:
    last = float(record.num_steps)
    draw = partial(chart, last_step=last)
    curve = partial(make_curve, steps=record.steps)
    pictures = [Picture(draw("loss", [curve("loss", values=record.column("loss"))]))]
    for kind, groups in record.kinds.items():
        shown: list[Curve] = [
            make_curve(name, group.steps, group.losses) for name, group in islice(groups.items(), NUM_COLORS)
        ]
        pictures.append(Picture(draw(_KIND_TITLES.get(kind, f"loss by {kind}"), shown), legend(shown)))
    speeds = [
        curve("all tokens", values=record.column("total_tokens_per_s")),
        curve("trained tokens", values=record.column("trained_tokens_per_s")),
    ]
    rate = curve("rate", values=record.column("learning_rate"), is_smooth=False)
    memory = curve("peak", values=record.column("peak_memory_gib"), is_smooth=False)
    return [
        *pictures,
        Picture(draw("gradient norm before clipping", [curve("gradient", values=record.column("grad_norm"))])),
        Picture(draw("learning rate", [rate], from_zero=True)),
        Picture(draw("tokens per second", speeds, from_zero=True), legend(speeds)),
        Picture(draw("peak memory, GiB", [memory], from_zero=True)),
    ]


def _throughput(record: RunRecord) -> list[tuple[str, str]]:
    if not record.metrics:
        return []
    seconds = record.step_seconds
    rows: list[tuple[str, str]] = []
    for name, title in (("total_tokens_per_s", "all tokens"), ("trained_tokens_per_s", "trained tokens")):
        speeds = record.column(name)
        done = _sum([speed * time for speed, time in zip(speeds, seconds, strict=True)])
        slow, median, fast = (number(quantile(speeds, share)) for share in (0.1, 0.5, 0.9))
        rows += [
            (f"{title} so far", f"about {done:,.0f}"),
            (f"{title} per second", f"median {median}; 10 % below {slow}, 10 % above {fast}"),
        ]
    rows.append(("seconds per step", number(_seconds_per_step(record))))
    return rows


def _data_account(data: Any) -> list[tuple[str, str]]:
    """Returns the account of rows: read, trained on, cut, and each reason for which samples were dropped."""
    if not isinstance(data, Mapping):
        return []
    rows = [
        ("rows read", f"{data.get('rows', 0):,}"),
        ("samples trained on", f"{data.get('samples', 0):,}"),
        ("samples cut", f"{data.get('cut', 0):,}"),
    ]
    if chunks := data.get("chunks"):
        rows.append(("rows joined", f"{chunks['rows']:,} rows to {chunks['samples']:,} samples"))
    for reason, dropped in data.get("dropped", {}).items():
        rows.append(("dropped", f"{dropped['samples']:,}: {reason} (first: row {dropped['first']})"))
    return rows


def _memory(record: RunRecord) -> list[tuple[str, str]]:
    """Returns the plan's memory by component, and beside their sum what was measured."""
    plan = record.plan.get("memory")
    plan = plan if isinstance(plan, Mapping) else {}
    components = plan.get("components")
    rows = [(str(name), size(value)) for name, value in (components or {}).items() if value]
    total = plan.get("total")
    if total:
        rows.append(("planned in all", size(total)))
    if plan.get("limit"):
        rows.append(("the device has", size(plan["limit"])))
    measured = [value for value in record.column("peak_memory_gib") if math.isfinite(value)]
    if measured:
        peak = max(measured) * _GIB
        rows.append(("measured peak", size(peak) + (f", {peak / total:.0%} of the plan" if total else "")))
    return rows


def _bytes(value: Any) -> Any:
    """Marks the numbers of the plan's disk section, which are bytes but for one, for `facts`."""
    if not isinstance(value, Mapping):
        return {}
    sizes = ("checkpoint", "final", "most", "free")
    return {f"{key}_bytes" if key in sizes else key: part for key, part in value.items()}


def _commands(record: RunRecord) -> list[tuple[str, str]]:
    run = shlex.quote(str(record.path))
    recipe = shlex.quote(str(record.path / "recipe.yaml"))
    commands = [("train the same again", f"misotune train {recipe} name={shlex.quote(record.name + '-again')}")]
    if not record.is_finished:
        commands.append(("go on with this run", f"misotune train {recipe} --resume"))
    return [
        *commands,
        ("score the trained model", f"misotune eval ifeval --model {run}"),
        ("write a plain checkpoint", f"misotune export {run}"),
        ("write this page again", f"misotune report {run}"),
    ]


def _sum(values: list[float]) -> float:
    return math.fsum(value for value in values if math.isfinite(value))
