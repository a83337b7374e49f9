"""What happened in a run, one JSON line each: starts, resumes, saves, warnings, stops."""

import contextlib
import json
import os
from datetime import UTC, datetime
from typing import Literal

from misotune.runs import RunFolder
from misotune.training.ranks import launch

EventKind = Literal["start", "resume", "save", "warning", "stop"]


def record_event(run: RunFolder, kind: EventKind, text: str) -> None:
    """Appends an event to `events.jsonl`, on the main rank; on the others nothing happens.

    A run never fails for want of an event: where the run folder is not there yet, or the disk takes nothing more,
    the event is lost. The line is written in one call, so that threads and a signal's handler cannot mix theirs.

    Args:
        run: The run.
        kind: What kind of thing happened.
        text: What happened, in one line, for a reader.
    """
    if not launch.is_main_process():
        return
    event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, "text": text}
    line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
    with contextlib.suppress(OSError):
        descriptor = os.open(run.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def has_recorded_stop(run: RunFolder) -> bool:
    """True when the run's end is recorded already, by who ended it and knows best why."""
    with contextlib.suppress(OSError):
        for line in reversed(run.events.read_text(encoding="utf-8", errors="replace").split("\n")):
            with contextlib.suppress(ValueError):
                kind = json.loads(line)["kind"]
                if kind in ("start", "resume", "stop"):
                    return kind == "stop"
    return False
