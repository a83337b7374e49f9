"""What `misotune eval` shows while responses are generated: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from misotune.evaluation.backends.base import GenerationProgress, OnProgress

_PLAIN_STEP_SHARE = 0.1
_PLAIN_STEP_S = 30.0


@contextmanager
def generation_progress(task: str, num_prompts: int | None, console: Console) -> Iterator["OnProgress"]:
    """Yields a callback that draws a bar on a terminal and prints lines elsewhere.

    Its first call says how many responses were kept from an interrupted evaluation. `num_prompts` is None where it is
    not known before that call.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("prompts"),
            TextColumn("{task.fields[tokens]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(task, total=num_prompts, tokens="")
            yield _kept_first(
                lambda now: progress.update(bar, total=now.num_prompts, completed=now.num_done, tokens=_tokens(now)),
                task,
                console,
            )
    else:
        yield _kept_first(_plain_progress(task, console), task, console)


def _kept_first(show: "OnProgress", task: str, console: Console) -> "OnProgress":
    is_first = True

    def report(now: "GenerationProgress") -> None:
        nonlocal is_first
        if is_first and now.num_kept:
            console.print(f"{task}: {now.num_kept} of {now.num_prompts} responses kept from the interrupted evaluation")
        is_first = False
        show(now)

    return report


def _tokens(now: "GenerationProgress") -> str:
    """Returns the new tokens and their speed; nothing where a server does not say."""
    return f"{now.num_new_tokens} new tokens, {now.tokens_per_s:.0f} a second" if now.num_new_tokens else ""


def _plain_progress(task: str, console: Console) -> "OnProgress":
    """Returns a callback that prints a line for every tenth of the prompts, and after a long silence."""
    last_share, last_s = 0.0, time.monotonic()

    def report(now: "GenerationProgress") -> None:
        nonlocal last_share, last_s
        share = now.num_done / now.num_prompts
        is_step = share >= last_share + _PLAIN_STEP_SHARE or (share == 1.0 and last_share < 1.0)
        if is_step or time.monotonic() >= last_s + _PLAIN_STEP_S:
            parts = (f"{now.num_done} of {now.num_prompts} prompts", _tokens(now), f"{now.elapsed_s:.0f} s")
            console.print(f"{task}: {', '.join(part for part in parts if part)}")
            last_share, last_s = share, time.monotonic()

    return report
