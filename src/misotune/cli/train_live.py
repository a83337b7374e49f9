"""What `train` shows while it goes on: a live view on a terminal, one line per log step elsewhere."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from misotune.cli.train_plan import plan_table

if TYPE_CHECKING:
    from misotune.training.prepared import Watcher
    from misotune.training.watching.metrics import StepMetrics

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%@"
_MOST_EVENTS = 5
_MOST_GROUPS = 6
# Steps that the time left is reckoned from: the first one may be slow, and rows differ in length.
_MEASURED_LINES = 50


@contextmanager
def training_watcher(console: Console, *, as_json: bool = False, shows_plan: bool = True) -> Iterator["Watcher"]:
    """Yields a watcher that draws on a terminal and prints lines elsewhere; other ranks than the main one only speak.

    Args:
        console: Where.
        as_json: Write the plan to standard output, as JSON.
        shows_plan: Whether the plan is shown when it is known.
    """
    from misotune.training.prepared import Watcher
    from misotune.training.ranks.launch import is_main_process

    def on_plan(plan: dict[str, Any]) -> None:
        if shows_plan:
            show_plan(console, plan, as_json=as_json)

    if not is_main_process():
        yield Watcher(on_message=lambda text: console.print(text, markup=False))
        return
    if not console.is_terminal or console.is_dumb_terminal:
        yield Watcher(
            on_encode=_plain_encoding(console),
            on_plan=on_plan,
            on_metrics=lambda metrics: console.print(metrics_line(metrics), markup=False),
            on_message=lambda text: console.print(text, markup=False),
        )
        return
    view = LiveView()

    def on_plan_shown(plan: dict[str, Any]) -> None:
        on_plan(plan)
        view.begin(plan)

    def on_message(text: str) -> None:
        if view.has_begun:
            view.add_event(text)
        else:
            console.print(text, markup=False)

    with Live(get_renderable=lambda: view, console=console, refresh_per_second=2, redirect_stdout=False):
        yield Watcher(on_encode=view.encode, on_plan=on_plan_shown, on_metrics=view.add_metrics, on_message=on_message)


def show_plan(console: Console, plan: Mapping[str, Any], *, as_json: bool) -> None:
    """Shows the plan as a table, or as JSON on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(plan) + "\n")
    else:
        console.print(plan_table(dict(plan)))


class LiveView:
    """A run on a terminal: how far it is, its loss as a line, its figures, its losses by group, its last events.

    Rows are drawn by another thread than the one that adds to them.

    Args:
        clock: Seconds, for the time gone by and the time left.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plan: dict[str, Any] | None = None
        self._began = 0.0
        self._losses: list[float] = []
        self._last: StepMetrics | None = None
        self._times: deque[tuple[int, float]] = deque(maxlen=_MEASURED_LINES)
        self._events: deque[str] = deque(maxlen=_MOST_EVENTS)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._encoding = Progress(*columns)
        self._speed_of = _row_speed()

    @property
    def has_begun(self) -> bool:
        """Whether the plan is known, and steps are what is shown."""
        return self._plan is not None

    def encode(self, done: int, total: int) -> None:
        """Takes how many rows are tokens."""
        if not self._encoding.tasks:
            self._encoding.add_task("tokens", note="")
        note = f"{self._speed_of(done):,.0f} rows/s"
        self._encoding.update(self._encoding.task_ids[0], total=total, completed=done, note=note)

    def begin(self, plan: dict[str, Any]) -> None:
        """Takes the plan: from here on steps are shown, before the first one ends, which may take minutes."""
        self._began = self._clock()
        self._plan = plan

    def add_metrics(self, metrics: "StepMetrics") -> None:
        """Takes a line of metrics."""
        self._losses.append(metrics.loss)
        self._times.append((metrics.step, self._clock()))
        self._last = metrics

    def add_event(self, text: str) -> None:
        """Takes what happened, to be shown with its time of day."""
        self._events.append(f"{time.strftime('%H:%M:%S')}  {text}")

    def seconds_left(self) -> float | None:
        """Returns the seconds until the last step at the pace of the last ones; None: not known yet."""
        times = list(self._times)
        if self._last is None or len(times) < 2:
            return None
        (first, began), (last, ended) = times[0], times[-1]
        left = (ended - began) / (last - first) * (self._last.num_steps - last)
        return max(left - (self._clock() - ended), 0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the view."""
        if self._plan is None:
            if self._encoding.tasks:
                yield self._encoding.get_renderable()
            return
        blocks = _ASCII_BLOCKS if options.ascii_only else _BLOCKS
        width = min(options.max_width, 100)
        parts: list[RenderableType] = [self._progress(width)]
        if self._last is not None:
            parts += [self._loss_line(self._last, width - 4, blocks), self._figures(self._last)]
            parts += [_groups_table(kind, groups) for kind, groups in self._last.groups.items()]
        if self._events:
            parts.append(Text("\n".join(self._events), style="dim"))
        title = f"{self._plan['name']}: {self._plan['mode']}, {self._plan['trains']}, {self._plan['precision']}"
        yield Panel(Group(*parts), title=Text(title), title_align="left", width=width, box=box.ROUNDED)

    def _progress(self, width: int) -> RenderableType:
        assert self._plan is not None
        total = self._plan["steps"]
        done = self._last.step if self._last else 0
        left = self.seconds_left()
        if self._last is None:
            note = "the first step"
        elif done >= total:
            note = "saving the model"
        else:
            note = "" if left is None else f"{_clock_text(left)} left"
        table = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=total, completed=done, width=max(width - 56, 10))
        gone = _clock_text(self._clock() - self._began)
        table.add_row(f"step {done:,}/{total:,}", bar, f"{done / total:.0%}", gone, note)
        return table

    def _loss_line(self, metrics: "StepMetrics", width: int, blocks: str) -> Text:
        lowest = min((loss for loss in self._losses if math.isfinite(loss)), default=math.nan)
        label = f"loss {metrics.loss:.4f} "
        end = f" lowest {lowest:.4f}"
        line = sparkline(self._losses, width - len(label) - len(end), blocks)
        return Text.assemble((label, "bold"), (line, "cyan"), (end, "dim"))

    def _figures(self, metrics: "StepMetrics") -> Table:
        table = Table.grid(padding=(0, 3))
        speed = f"{metrics.total_tokens_per_s:,.0f} tokens/s"
        trained = f"{metrics.trained_tokens_per_s:,.0f}/s trained"
        table.add_row(speed, f"gradient {metrics.grad_norm:.3f}", f"memory {metrics.peak_memory_gib:.2f} GiB")
        table.add_row(trained, f"rate {metrics.learning_rate:.2e}", f"epoch {metrics.epoch:.2f}")
        return table


def sparkline(values: Sequence[float], width: int, blocks: str = _BLOCKS) -> str:
    """Returns values as a line of blocks, each the mean of as many neighbours as the width asks for.

    Args:
        values: In order; those that are not finite are shown as `!`.
        width: Characters at most.
        blocks: From the lowest to the highest.

    >>> sparkline([3, 2, 1, 1], 10)
    '█▅▁▁'
    >>> sparkline([4, 4, 2, 2, 0, float("nan")], 3)
    '█▁!'
    >>> sparkline([], 10)
    ''
    """
    if not values or width < 1:
        return ""
    size = -(-len(values) // width)
    bins = [values[i : i + size] for i in range(0, len(values), size)]
    means = [sum(each) / len(each) for each in bins]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    top = len(blocks) - 1

    def block(mean: float) -> str:
        if not math.isfinite(mean):
            return "!"
        return blocks[round((mean - low) / (high - low) * top) if high > low else 0]

    return "".join(map(block, means))


def metrics_line(metrics: "StepMetrics") -> str:
    """Returns one plain line for a log."""
    groups = "".join(
        f"  {kind} " + ", ".join(f"{name} {group.loss:.3f}" for name, group in _largest(members))
        for kind, members in metrics.groups.items()
    )
    return (
        f"step {metrics.step}/{metrics.num_steps}  epoch {metrics.epoch:.2f}  loss {metrics.loss:.4f}  "
        f"lr {metrics.learning_rate:.2e}  grad {metrics.grad_norm:.3f}  "
        f"{metrics.total_tokens_per_s:,.0f} tokens/s, {metrics.trained_tokens_per_s:,.0f} of them trained  "
        f"{metrics.peak_memory_gib:.2f} GiB  {metrics.elapsed_s:,.0f} s{groups}"
    )


def _groups_table(kind: str, groups: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    cells = [Text.assemble((f"{name} ", "dim"), f"{group.loss:.3f}") for name, group in _largest(groups)]
    table.add_row(Text(f"by {kind}", style="bold"), *cells)
    return table


def _largest(groups: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns the groups with the most tokens, in the order that they have in every line."""
    most = sorted(groups, key=lambda name: -groups[name].tokens)[:_MOST_GROUPS]
    return [(name, group) for name, group in groups.items() if name in most]


def _clock_text(seconds: float) -> str:
    """Returns a duration as people read it.

    >>> _clock_text(59.6), _clock_text(3725), _clock_text(200000)
    ('1:00', '1:02:05', '2 d 7:33:20')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02d}:{second:02d}"


def _plain_encoding(console: Console) -> Callable[[int, int], None]:
    """Returns a callback that says once per tenth how far encoding is, on data sets that take a while."""
    shown: int | None = None
    speed_of = _row_speed()

    def on_encode(done: int, total: int) -> None:
        nonlocal shown
        speed, tenths = speed_of(done), done * 10 // total
        # The first call says what was there already.
        if total >= 10_000 and shown is not None and tenths > shown:
            console.print(f"encoded {done:,} of {total:,} rows ({speed:,.0f} rows/s)")
        shown = tenths

    return on_encode


def _row_speed() -> Callable[[int], float]:
    """Returns what gives, from the number of rows done, the rows done a second since its first call."""
    first: tuple[float, int] | None = None

    def speed_of(done: int) -> float:
        nonlocal first
        first = first or (time.monotonic(), done)
        return (done - first[1]) / max(time.monotonic() - first[0], 1e-3)

    return speed_of
