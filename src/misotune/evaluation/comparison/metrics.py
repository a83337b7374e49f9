"""A row of `samples.jsonl` as a comparison reads it: what was asked, the answer, and its score under each metric."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.errors import DataError

# A number counts per prompt, a tuple per part: per constraint, per question.
Value = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, its response and the scores of that response.

    Attributes:
        key: The prompt's key, as text.
        prompt: The prompt.
        response: The response.
        types: The label of each part; empty where the row has none.
        group: The prompt's group, or None.
        cluster: The label of the prompts that hang together with this one, as those on one text do; None: it stands
            alone.
        values: The scores by metric, in [0, 1].
    """

    key: str
    prompt: str
    response: str
    types: tuple[str, ...]
    group: str | None
    cluster: str | None
    values: Mapping[str, Value]


def sample_of_row(row: Mapping[str, Any], where: str) -> Sample:
    """Returns a row of `samples.jsonl`, IFEval's kind or one with `scores`.

    Args:
        row: The row.
        where: What to call it in an error: file and line.

    Raises:
        DataError: A field is missing, or has the wrong form.

    >>> row = {"key": 7, "prompt": "p", "response": "r", "instruction_id_list": ["a:b", "c:d"]}
    >>> sample_of_row({**row, "strict": [True, False], "loose": [True, True]}, "row 1").values
    {'prompt_level_strict_acc': 0.0, 'inst_level_strict_acc': (1.0, 0.0), \
'prompt_level_loose_acc': 1.0, 'inst_level_loose_acc': (1.0, 1.0)}
    """
    for field in ("key", "prompt", "response"):
        if field not in row:
            raise DataError(f"{where}: no field {field!r}; a line of samples.jsonl needs it")
    if "scores" in row:
        values, labels = _values_of_scores(row["scores"], where), row.get("types")
    else:
        values, labels = _values_of_verdicts(row, where), row.get("instruction_id_list")
    types = tuple(map(str, labels or ()))
    for metric, value in values.items():
        if types and isinstance(value, tuple) and len(value) != len(types):
            raise DataError(f"{where}: {metric} has {len(value)} parts and {len(types)} types; score the task again")
    group, cluster = (None if row.get(field) is None else str(row[field]) for field in ("group", "cluster"))
    return Sample(str(row["key"]), str(row["prompt"]), str(row["response"]), types, group, cluster, values)


def cluster_of(a: Sample, b: Sample) -> Hashable:
    """Returns what tells the cluster of a prompt from all others; a prompt that stands alone is one of its own.

    Args:
        a: The prompt's row in one result.
        b: Its row in another one; of an older version, either may be without a cluster.
    """
    cluster = b.cluster if a.cluster is None else a.cluster
    return ("key", a.key) if cluster is None else ("cluster", cluster)


def count_clusters(pairs: Sequence[tuple[Sample, Sample]]) -> int | None:
    """Returns how many clusters some prompts make up; None where every prompt is one of its own."""
    number = len({cluster_of(a, b) for a, b in pairs})
    return number if number < len(pairs) else None


def _values_of_verdicts(row: Mapping[str, Any], where: str) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for kind in ("strict", "loose"):
        verdicts = row.get(kind)
        if not isinstance(verdicts, list) or not verdicts:
            raise DataError(f"{where}: needs 'scores', or 'strict' and 'loose' as lists of verdicts")
        values[f"prompt_level_{kind}_acc"] = float(all(verdicts))
        values[f"inst_level_{kind}_acc"] = tuple(float(bool(met)) for met in verdicts)
    return values


def _values_of_scores(scores: Any, where: str) -> dict[str, Value]:
    if not isinstance(scores, Mapping):
        raise DataError(
            f"{where}: 'scores' must hold a number or a list of numbers for each metric, got {scores!r:.60}"
        )
    values: dict[str, Value] = {}
    for metric, value in scores.items():
        if isinstance(value, list):
            values[metric] = tuple(_number(part, metric, where) for part in value)
        else:
            values[metric] = _number(value, metric, where)
    return values


def _number(value: Any, metric: str, where: str) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= 1:
        raise DataError(f"{where}: {metric} must be a number from 0 to 1, got {value!r:.60}")
    return float(value)
