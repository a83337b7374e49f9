"""Compares results of `eval`, the first with each other one: `misotune compare` as one function."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError, UsageError
from misotune.evaluation.comparison.difference import Difference, correct, differences_of, is_verdict, verdict
from misotune.evaluation.comparison.metrics import Sample, count_clusters
from misotune.evaluation.comparison.reading import (
    LETTERS,
    Result,
    find_results,
    notes_on_pair,
    pair_samples,
    read_result,
)
from misotune.evaluation.comparison.statistics import NUM_RESAMPLES, SEED

FORMAT = 1
BY_NUMBER = ("number of constraints", "number of parts")

Pairs = Sequence[tuple[Sample, Sample]]


@dataclass(frozen=True, slots=True)
class ResultPair:
    """What is found between the first result and another one.

    Attributes:
        letters: What the two are called.
        results: The two.
        num_prompts: Prompts that both answer.
        num_clusters: Clusters that these make up, as those that share a text do; None: every prompt stands alone.
        overall: The difference of each metric over all prompts.
        tables: Differences of parts by kind: constraint type, number of parts, group.
        main_metric: Which metric decides what is a win: the first with a verdict a prompt, else the first.
        wins: The rows of prompts on which the second result scores higher on the main metric.
        losses: Those on which the first does.
        notes: What a reader must know.
    """

    letters: tuple[str, str]
    results: tuple[Result, Result]
    num_prompts: int
    num_clusters: int | None
    overall: Sequence[Difference]
    tables: Mapping[str, Sequence[Difference]]
    main_metric: str
    wins: Pairs
    losses: Pairs
    notes: Sequence[str]

    @property
    def main(self) -> Difference:
        """The difference of the main metric over all prompts."""
        return next(line for line in self.overall if line.metric == self.main_metric)

    def main_lines(self, kind: str) -> list[Difference]:
        """Returns a table's lines of the main metric, or of its first one where the main metric has no parts."""
        table = self.tables.get(kind, ())
        metrics = [line.metric for line in table]
        metric = self.main_metric if self.main_metric in metrics else metrics[0] if metrics else ""
        return [line for line in table if line.metric == metric]

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of `comparison.json`; wins and losses by their keys."""
        return {
            "a": self.letters[0],
            "b": self.letters[1],
            "num_prompts": self.num_prompts,
            "main_metric": self.main_metric,
            "verdict": verdict(self.main, self.letters),
            "overall": [line.to_json(self.letters) for line in self.overall],
            "tables": {kind: [line.to_json(self.letters) for line in table] for kind, table in self.tables.items()},
            "wins": [b.key for _, b in self.wins],
            "losses": [a.key for a, _ in self.losses],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of one task, the first of them compared with each other one."""

    task: str
    results: Sequence[Result]
    pairs: Sequence[ResultPair]

    @property
    def pictured_kind(self) -> str:
        """The kind of parts that is worth a picture: types, else groups, else numbers of parts; empty for none."""
        kinds = list(self.pairs[0].tables)
        return next((kind for kind in kinds if kind not in BY_NUMBER), kinds[0] if kinds else "")

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `comparison.json`."""
        return {
            "format": FORMAT,
            "task": self.task,
            "results": {
                LETTERS[at]: {"model": result.model, "folder": str(result.folder), "num_prompts": len(result.samples)}
                for at, result in enumerate(self.results)
            },
            "method": self._method(),
            "pairs": [pair.to_json() for pair in self.pairs],
        }

    def _method(self) -> dict[str, Any]:
        clusters = {pair.letters[1]: pair.num_clusters for pair in self.pairs if pair.num_clusters is not None}
        unit = "clusters of prompts" if clusters else "prompts"
        method = {"interval": f"95 %, percentile bootstrap over {unit}", "resamples": NUM_RESAMPLES, "seed": SEED}
        return {**method, "num_clusters": clusters} if clusters else method


def compare_results(
    paths: Sequence[Path], *, task: str | None = None, on_pair: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Returns what is found between the first result and each other one.

    Args:
        paths: At least two: result folders, runs, or folders of results by task. The first is the baseline.
        task: Which task, where the paths hold several; None for the only one that they share.
        on_pair: Called with a line before each pair is compared.

    Raises:
        UsageError: A path holds no result, or two results cannot be compared.
        DataError: A file of a result is wrong.
    """
    if not 2 <= len(paths) <= len(LETTERS):
        raise UsageError(f"compare takes 2 to {len(LETTERS)} results, the first of them the baseline; got {len(paths)}")
    results = [read_result(folder) for folder in find_results(paths, task)]
    paired = [pair_samples(results[0], other) for other in results[1:]]
    found: list[ResultPair] = []
    for letter, other, pairs in zip(LETTERS[1:], results[1:], paired, strict=False):
        on_pair(f"{LETTERS[0]} and {letter}: {len(pairs)} prompts")
        found.append(compare_pair(results[0], other, pairs, (LETTERS[0], letter)))
    return Comparison(results[0].task, results, found)


def compare_pair(a: Result, b: Result, pairs: Pairs, letters: tuple[str, str] = ("A", "B")) -> ResultPair:
    """Returns what is found between two results.

    Args:
        a: The baseline.
        b: The other one.
        pairs: Their rows from `pair_samples`.
        letters: What to call them.

    Raises:
        DataError: The two do not score the same metrics, or not the same parts of a prompt.
    """
    _check_alike(a, b, pairs)
    metrics = list(dict.fromkeys(metric for sample, _ in pairs for metric in sample.values))
    main = next((metric for metric in metrics if is_verdict(pairs, metric)), metrics[0])
    above = [(one, other, _total(other, main) - _total(one, main)) for one, other in pairs]
    tables = {kind: correct(lines) for kind, lines in _tables(a, pairs, metrics) if len({x.label for x in lines}) > 1}
    return ResultPair(
        letters=letters,
        results=(a, b),
        num_prompts=len(pairs),
        num_clusters=count_clusters(pairs),
        overall=differences_of(pairs, metrics),
        tables=tables,
        main_metric=main,
        wins=[(one, other) for one, other, more in above if more > 0],
        losses=[(one, other) for one, other, more in above if more < 0],
        notes=notes_on_pair(a, b, pairs),
    )


def _check_alike(a: Result, b: Result, pairs: Pairs) -> None:
    for one, other in pairs:
        shapes = [{name: _num_parts(sample, name) for name in sample.values} for sample in (one, other)]
        if shapes[0] != shapes[1]:
            metric = min(name for name, _ in shapes[0].items() ^ shapes[1].items())
            raise DataError(
                f"key {one.key} is not scored alike in {a.folder} and {b.folder} ({metric} is missing in one, or has "
                "another number of parts); score both with the same version of the task"
            )
    if not any(sample.values for sample, _ in pairs):
        raise DataError(f"{a.folder}: its rows have no scores; score the task again")


def _num_parts(sample: Sample, metric: str) -> int:
    """Returns the number of parts that a sample has under a metric; -1 where the metric is one number."""
    value = sample.values[metric]
    return len(value) if isinstance(value, tuple) else -1


def _total(sample: Sample, metric: str) -> float:
    value = sample.values.get(metric, 0.0)
    return sum(value) if isinstance(value, tuple) else value


def _tables(a: Result, pairs: Pairs, metrics: Sequence[str]) -> Iterator[tuple[str, list[Difference]]]:
    """Yields each kind of part and its lines, those of one metric beside one another."""
    types = sorted({label for sample, _ in pairs for label in sample.types})
    lines = [differences_of(pairs, metrics, label, part=label) for label in types]
    yield _kind(a, types, "type"), _by_metric(lines, metrics)

    sizes: dict[int, list[tuple[Sample, Sample]]] = {}
    groups: dict[str, list[tuple[Sample, Sample]]] = {}
    for pair in pairs:
        if pair[0].types:
            sizes.setdefault(len(pair[0].types), []).append(pair)
        if pair[0].group is not None:
            groups.setdefault(pair[0].group, []).append(pair)
    lines = [differences_of(sizes[size], metrics, str(size)) for size in sorted(sizes)]
    yield BY_NUMBER[0 if _kind(a, types, "") == "constraint type" else 1], _by_metric(lines, metrics)
    lines = [differences_of(group, metrics, label) for label, group in groups.items()]
    yield _kind(a, groups, "group"), _by_metric(lines, metrics)


def _by_metric(lines: Sequence[Sequence[Difference]], metrics: Sequence[str]) -> list[Difference]:
    return [line for metric in metrics for found in lines for line in found if line.metric == metric]


def _kind(result: Result, labels: Collection[str], default: str) -> str:
    """Returns what `scores.json` calls the kind of these labels."""
    groups = result.scores.get("groups")
    for kind, named in groups.items() if isinstance(groups, Mapping) else ():
        if labels and isinstance(named, Mapping) and set(labels) <= set(named):
            return str(kind)
    return default
