"""Finds and reads results of `eval`, and pairs two of them prompt by prompt."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from misotune.errors import DataError, UsageError
from misotune.evaluation.comparison.metrics import Sample, count_clusters, sample_of_row
from misotune.evaluation.constrained import read_jsonl
from misotune.evaluation.results import SAMPLES_FILE, SCORES_FILE
from misotune.storage import recover_folder

# What results are called, in their order.
LETTERS = string.ascii_uppercase
_NEEDED = ("task", "model", "prompts_sha256")
# Settings that differ without any say in the scores, or that are told in other words.
_NOT_NOTED = ("limit", "responses")
# Settings that are kept only where they are chosen.
_CHOSEN = ("steer", "steer_layers", "steer_heads", "indicator")
# Its keys are KEY-INDEX: the prompts of one KEY come from one prompt of IFEval.
_FLATTENED = "ifeval-flatten"


@dataclass(frozen=True, slots=True)
class Result:
    """One result of `eval`.

    Attributes:
        folder: Where it lies.
        scores: The content of `scores.json`.
        samples: The rows of `samples.jsonl` by key, in the task's order.
    """

    folder: Path
    scores: Mapping[str, Any]
    samples: Mapping[str, Sample]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.scores["task"]

    @property
    def model(self) -> str:
        """The model as it was named, or the file of responses."""
        return self.scores["model"]


def find_results(paths: Sequence[Path], task: str | None = None) -> list[Path]:
    """Returns the result folder that each path stands for, all of one task.

    Args:
        paths: Result folders, runs, or folders of results by task (`RUN/scores`, `scores/MODEL`).
        task: Which task, where a path holds several; None for the only one that they share.

    Raises:
        UsageError: A path holds no result, or it is open which one is meant.
    """
    found = [_results_at(path) for path in paths]
    for path, results in zip(paths, found, strict=True):
        if task is not None and not isinstance(results, Path) and task not in results:
            raise UsageError(f"{path}: no result of task {task!r}; it holds {', '.join(sorted(results))}")
    choices = [results for results in found if not isinstance(results, Path)]
    if choices and task is None:
        shared = set(choices[0]).intersection(*choices[1:])
        shared &= {_read_scores(results)["task"] for results in found if isinstance(results, Path)} or shared
        if len(shared) != 1:
            held = "; ".join(f"{path} holds {_named(results)}" for path, results in zip(paths, found, strict=True))
            what = "several tasks are shared, choose one with --task" if shared else "they share no task"
            raise UsageError(f"{what}: {held}")
        task = shared.pop()
    return [results if isinstance(results, Path) else results[str(task)] for results in found]


def _results_at(path: Path) -> Path | dict[str, Path]:
    """Returns the result folder at a path, or those below it by task."""
    path = path.parent if path.name == SCORES_FILE else path
    if not path.exists():
        recover_folder(path)
    if (path / SCORES_FILE).is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; name a result folder of misotune eval, or a run that was evaluated")
    root = path / "scores" if (path / "scores").is_dir() else path
    below = {entry.name: entry for entry in sorted(root.iterdir()) if (entry / SCORES_FILE).is_file()}
    results = {name: entry for name, entry in below.items() if not name.startswith(".")}
    if not results:
        raise UsageError(f"{path}: holds no result of eval (a folder with {SCORES_FILE}); make one: misotune eval TASK")
    return results


def _named(results: Path | dict[str, Path]) -> str:
    return _read_scores(results)["task"] if isinstance(results, Path) else ", ".join(results)


def read_result(path: Path) -> Result:
    """Returns the result in a result folder.

    Raises:
        UsageError: There is no result.
        DataError: One of its files is wrong; names file and line.
    """
    if not (path / SCORES_FILE).is_file():
        raise UsageError(f"{path}: no result of eval (there is no {SCORES_FILE}); make one: misotune eval TASK")
    scores = _read_scores(path)
    samples: dict[str, Sample] = {}
    for where, row in read_jsonl(path / SAMPLES_FILE):
        sample = sample_of_row(row, where)
        if sample.key in samples:
            raise DataError(f"{where}: key {sample.key} stands there twice; score the task again")
        if sample.cluster is None and scores["task"] == _FLATTENED:
            sample = replace(sample, cluster=sample.key.rpartition("-")[0])
        samples[sample.key] = sample
    return Result(path, scores, samples)


def _read_scores(folder: Path) -> dict[str, Any]:
    path = folder / SCORES_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); score the task again") from error
    for field in _NEEDED:
        if not isinstance(content, dict) or not isinstance(content.get(field), str):
            raise DataError(f"{path}: no field {field!r}; score the task again")
    return content


def pair_samples(a: Result, b: Result) -> list[tuple[Sample, Sample]]:
    """Returns the rows of the prompts that both results answer, in the order of `a`.

    Raises:
        UsageError: The results are of different tasks or prompts.
    """
    if a.task != b.task:
        raise UsageError(
            f"results of different tasks cannot be compared: {a.folder} is of {a.task}, {b.folder} of {b.task}"
        )
    # The hash covers the prompts that were run, so that it says nothing where only the first so many were.
    if _sha256(a) != _sha256(b) and not (_is_limited(a) or _is_limited(b)):
        raise UsageError(
            f"the prompts differ: {a.folder} has prompts_sha256 {_sha256(a):.12}…, {b.folder} has {_sha256(b):.12}…; "
            "evaluate both on the same prompts"
        )
    pairs = [(sample, b.samples[key]) for key, sample in a.samples.items() if key in b.samples]
    if not pairs:
        raise UsageError(f"{a.folder} and {b.folder} have no prompt in common")
    for one, other in pairs:
        if (one.prompt, one.types) != (other.prompt, other.types):
            raise UsageError(
                f"the prompts differ: key {one.key} asks for something else in {a.folder} than in {b.folder}; "
                "evaluate both on the same prompts"
            )
        if None not in (one.cluster, other.cluster) and one.cluster != other.cluster:
            raise UsageError(
                f"key {one.key} is of cluster {one.cluster!r:.60} in {a.folder} and of {other.cluster!r:.60} in "
                f"{b.folder}; score both with the same version of the task"
            )
    return pairs


def notes_on_pair(a: Result, b: Result, pairs: Sequence[tuple[Sample, Sample]]) -> list[str]:
    """Returns what a reader must know: prompts left out, clusters, and settings and versions that differ."""
    notes: list[str] = []
    num_paired, num_clusters = len(pairs), count_clusters(pairs)
    if num_paired < max(len(a.samples), len(b.samples)):
        notes.append(
            f"only {num_paired} prompts are in both and are compared; {a.folder} has {len(a.samples)}, "
            f"{b.folder} has {len(b.samples)}"
        )
    if num_clusters is not None:
        notes.append(
            f"the {num_paired:,} prompts make up {num_clusters:,} clusters that share a text; intervals, noise and "
            "tests take each cluster as one"
        )
    elsewhere = [result for result in (a, b) if "responses" in _mapping(result, "settings")]
    if len(elsewhere) == 1:
        notes.append(f"the responses of {elsewhere[0].model} were made elsewhere; how is not known here")
    for kind in ("settings", "versions"):
        one, other = _mapping(a, kind), _mapping(b, kind)
        if kind == "settings":
            chosen = {name: "none" for name in _CHOSEN if name in one or name in other}
            one, other = {**chosen, **one}, {**chosen, **other}
        differ = [
            f"{name} {one[name]} and {other[name]}"
            for name in one
            if name in other and name not in _NOT_NOTED and one[name] != other[name]
        ]
        if differ:
            notes.append(f"{kind} differ: {', '.join(differ)}")
    return notes


def _sha256(result: Result) -> str:
    return result.scores["prompts_sha256"]


def _is_limited(result: Result) -> bool:
    return _mapping(result, "settings").get("limit") is not None


def _mapping(result: Result, name: str) -> Mapping[str, Any]:
    value = result.scores.get(name)
    return value if isinstance(value, Mapping) else {}
