"""What lm-eval's results come to: figures that are shares, those that are not, and what each prompt scored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# They may lie between 0 and 1 without being a share of anything.
_NO_SHARES = frozenset(
    {
        "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "likelihood", "brier_score", "mcc",
        "bleu", "sacrebleu", "chrf", "chrf++", "ter", "bypass",
    }
)  # fmt: skip
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a task, after one of the task's filters.

    Attributes:
        key: lm-eval's key in its results, `METRIC,FILTER`.
        name: What it is called here.
        value: lm-eval's figure.
        values: What each row scored, by the row's number; empty: no single number a row.
        is_share: The figure is the mean of those, each a share of 1, and more is better.
    """

    key: str
    name: str
    value: float
    values: Mapping[int, float]
    is_share: bool


def metrics_of(task: str, results: Mapping[str, Any]) -> list[Metric]:
    """Returns the metrics of a task in lm-eval's order.

    Args:
        task: The task's name.
        results: What `lm_eval.simple_evaluate` returned, samples included.
    """
    found = results["results"][task]
    better = results["higher_is_better"].get(task, {})
    samples = results["samples"][task]
    keys = [key for key in found if "," in key and "_stderr," not in key and _is_number(found[key])]
    filters = {key.rpartition(",")[2] for key in keys}
    metrics: list[Metric] = []
    for key in keys:
        metric, _, chosen = key.rpartition(",")
        scored = {sample["doc_id"]: sample.get(metric) for sample in samples if sample["filter"] == chosen}
        values = {row: float(value) for row, value in scored.items() if _is_number(value)}
        is_whole = len(values) == len(scored)
        is_share = (
            metric not in _NO_SHARES
            and better.get(metric) is not False
            and is_whole
            and all(0 <= value <= 1 for value in values.values())
            and abs(sum(values.values()) / len(values) - found[key]) < _SAME
        )
        name = metric if len(filters) == 1 else f"{metric} ({chosen})"
        metrics.append(Metric(key, name, float(found[key]), values if is_whole else {}, is_share))
    return metrics


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a task or group.

    Attributes:
        shares: Shares of 1 by name.
        parts: The same of each subtask, with the number of its rows; empty where there is one task.
        notes: What a reader must know, and the figures that are no shares.
    """

    shares: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


def figures_of(name: str, metrics: Mapping[str, Sequence[Metric]], results: Mapping[str, Any]) -> Figures:
    """Returns the figures of a task, or of a group of them.

    A group's figures are lm-eval's own. Where it has none, they are the means over all rows.

    Args:
        name: Of the task or group.
        metrics: Of each task, by its name.
        results: lm-eval's.
    """
    notes = [
        f"{task}: {metric.name} {metric.value:.4g}, which is no share of the prompts that are met; it is in "
        "lm_eval.json only" if task == name else
        f"{task}: {metric.name} {metric.value:.4g}, no share; in lm_eval.json only"
        for task, found in metrics.items()
        for metric in found
        if not metric.is_share
    ]  # fmt: skip
    shares = {task: {m.name: m for m in found if m.is_share} for task, found in metrics.items()}
    if list(metrics) == [name]:
        return Figures({label: metric.value for label, metric in shares[name].items()}, {}, tuple(notes))
    first, *others = shares.values()
    common = [label for label in first if all(label in other for other in others)]
    numbers = {task: results["n-samples"][task]["effective"] for task in metrics}
    parts = {
        task: {"number": numbers[task], **{label: shares[task][label].value for label in common}} for task in metrics
    }
    own = results["results"].get(name, {})
    figures: dict[str, float] = {}
    for label in common:
        mean = sum(parts[task][label] * numbers[task] for task in parts) / sum(numbers.values())
        figures[label] = own.get(first[label].key, mean)
        if first[label].key not in own:
            notes.append(f"{label} is the mean over all prompts: lm-eval has no such figure for {name!r} as a whole")
        elif abs(figures[label] - mean) > _SAME:
            notes.append(f"{label} is the mean over the subtasks; a comparison counts each prompt alike")
    return Figures(figures, parts, tuple(notes))
