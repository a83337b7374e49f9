"""A run as its folder tells it: whatever is there is read, and a file that is missing or cut off is left out."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from misotune.errors import UsageError
from misotune.runs import RunFolder

# How the resolved recipe says where a value came from; see `misotune.recipe.resolved.dump`.
_ORIGIN = re.compile(r"^(?P<text>.*?\S)\s+#\s(?P<origin>\S.*)$")


@dataclass(frozen=True, slots=True)
class RecipeLine:
    """A line of the resolved recipe: its YAML, and where its value came from (empty: the head of a section)."""

    text: str
    origin: str


@dataclass(slots=True)
class GroupRecord:
    """The losses of a group, at the steps at which a token of it was trained, and its trained tokens."""

    steps: list[float] = field(default_factory=list[float])
    losses: list[float] = field(default_factory=list[float])
    tokens: int = 0


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Attributes:
        name: Its name.
        path: Its folder.
        recipe: The lines of its resolved recipe.
        plan: `plan.json`.
        environment: `environment.json`.
        events: `events.jsonl`: each with `time`, `kind` and `text`.
        metrics: `metrics.jsonl`, in the order of steps.
        is_finished: Whether the final model is there.
    """

    name: str
    path: Path
    recipe: list[RecipeLine] = field(default_factory=list)
    plan: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    events: list[dict[str, str]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    is_finished: bool = False

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest line of metrics; empty before the first one."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run; 0: not known."""
        return int(self.last.get("num_steps") or self.plan.get("steps") or 0)

    @cached_property
    def step_seconds(self) -> list[float]:
        """Seconds that each line of metrics stands for; a resumed run begins to count anew."""
        elapsed = [0.0, *(float(line.get("elapsed_s", 0.0)) for line in self.metrics)]
        return [now - before if now >= before else now for before, now in pairwise(elapsed)]

    @property
    def seconds(self) -> float:
        """Seconds of training, over all processes that the run had."""
        return sum(self.step_seconds)

    def column(self, name: str) -> list[float]:
        """Returns a number of every line; NaN where there is none."""
        return [_number(line.get(name)) for line in self.metrics]

    @cached_property
    def steps(self) -> list[float]:
        """The step of every line."""
        return self.column("step")

    @cached_property
    def kinds(self) -> dict[str, dict[str, GroupRecord]]:
        """Kind of group -> its groups: numbers of inputs in order, others by their tokens."""
        kinds: dict[str, dict[str, GroupRecord]] = {}
        for step, line in zip(self.steps, self.metrics, strict=True):
            for kind, groups in _mapping(line.get("groups")).items():
                records = kinds.setdefault(kind, {})
                for name, group in _mapping(groups).items():
                    record = records.get(name) or records.setdefault(name, GroupRecord())
                    record.steps.append(step)
                    record.losses.append(_number(_mapping(group).get("loss")))
                    record.tokens += int(_mapping(group).get("tokens") or 0)
        return {
            kind: dict(sorted(records.items(), key=_ORDERS.get(kind, _by_tokens))) for kind, records in kinds.items()
        }


def read_run(run: RunFolder) -> RunRecord:
    """Returns what a run's folder tells.

    Raises:
        UsageError: It is no run's folder.
    """
    if not run.recipe.is_file():
        what = "is not a run folder (it has no recipe.yaml)" if run.path.is_dir() else "is not there"
        raise UsageError(f"{run.path} {what}; name a folder that misotune train wrote")
    return RunRecord(
        name=run.name,
        path=run.path,
        recipe=[_recipe_line(line) for line in _text(run.recipe).split("\n") if line.strip()],
        plan=_mapping(_json(_text(run.plan))),
        environment=_mapping(_json(_text(run.environment))),
        events=[{key: str(event.get(key, "")) for key in ("time", "kind", "text")} for event in _lines(run.events)],
        metrics=[line for line in _lines(run.metrics) if "step" in line],
        is_finished=run.is_finished(),
    )


def _recipe_line(line: str) -> RecipeLine:
    found = _ORIGIN.match(line)
    return RecipeLine(found["text"], found["origin"]) if found else RecipeLine(line.rstrip(), "")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file with one on each line; the last may be cut off while it is written."""
    for line in _text(path).split("\n"):
        value = _json(line)
        if isinstance(value, dict):
            yield value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _by_tokens(entry: tuple[str, GroupRecord]) -> Any:
    return -entry[1].tokens


def _by_number(entry: tuple[str, GroupRecord]) -> Any:
    """Numbers, and `over N` last."""
    return len(entry[0]), entry[0]


_ORDERS = {"inputs": _by_number}
