"""The run folder: what `train` writes, and what `eval` and `export` find in it.

runs/NAME/
    recipe.yaml        the resolved recipe, with where each value came from
    plan.json          rows, tokens, steps
    metrics.jsonl      one line per logged step
    checkpoints/       step-N/, each with a manifest written last
    final/             the trained model (plain checkpoint, or LoRA adapter); its presence means "finished"
    probe.safetensors  token ids and the trained model's logits on them, for the proof in `export`
    scores/            results of `eval`: TASK/ of this run, base/TASK/ of the model that it started from, and
                       against-base/TASK/ their comparison
    environment.json   versions, devices and hosts of the ranks
    events.jsonl       what happened: starts, resumes, saves, warnings, stops, each with its time
    report.html        the run on one page, rewritten as it goes on
    trackers/          files of TensorBoard, Weights & Biases and trackio
    stacks/            where every rank stood when a collective timed out
    non_finite/        the batch at which the loss or a gradient was no longer finite
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import UsageError

RUNS_ROOT = Path("runs")
# What the user does after a stop before the run folder was written.
SAME_COMMAND = "start again with the same command"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside one run."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: its folder's name."""
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """Rows, tokens and steps, as JSON."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints `step-N`."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """The trained model; written beside and renamed, so that it is whole when it is there."""
        return self.path / "final"

    @property
    def probe(self) -> Path:
        """Token ids and the trained model's logits on them."""
        return self.path / "probe.safetensors"

    @property
    def scores(self) -> Path:
        """Folder of evaluation results, one folder a task."""
        return self.path / "scores"

    @property
    def base_scores(self) -> Path:
        """Folder of the results of the model that the run started from, one folder a task."""
        return self.scores / "base"

    @property
    def against_base(self) -> Path:
        """Folder of the comparisons of both, one folder a task."""
        return self.scores / "against-base"

    @property
    def environment(self) -> Path:
        """Versions, devices and hosts, as JSON."""
        return self.path / "environment.json"

    @property
    def events(self) -> Path:
        """One JSON line for each thing that happened."""
        return self.path / "events.jsonl"

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.path / "report.html"

    @property
    def trackers(self) -> Path:
        """Folder of the files that trackers write."""
        return self.path / "trackers"

    @property
    def stacks(self) -> Path:
        """Folder of the ranks' stacks at a time-out."""
        return self.path / "stacks"

    @property
    def non_finite(self) -> Path:
        """Folder of the batch at which a number was no longer finite."""
        return self.path / "non_finite"

    def is_finished(self) -> bool:
        """True when training ended and the final model is whole."""
        return (self.final / "config.json").is_file() or (self.final / "adapter_config.json").is_file()

    def next_command(self) -> str:
        """Returns what the user does after a stop; without a checkpoint `--resume` starts at step 0."""
        if self.recipe.is_file():
            return f"go on: misotune train {self.recipe} --resume"
        return SAME_COMMAND

    def read_plan(self) -> dict[str, Any]:
        """Returns the plan that training was started with."""
        return json.loads(self.plan.read_text(encoding="utf-8"))


def newest_finished_run(root: Path = RUNS_ROOT) -> RunFolder:
    """Returns the finished run whose final model is the newest.

    Raises:
        UsageError: There is no finished run below `root`.
    """
    runs = [RunFolder(path) for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    finished = [run for run in runs if run.is_finished()]
    if not finished:
        raise UsageError(f"no finished run in {root}/; name a model or run, or train one: misotune train RECIPE")
    return max(finished, key=lambda run: run.final.stat().st_mtime)


def run_at(path: Path) -> RunFolder:
    """Returns the run folder at `path`.

    Raises:
        UsageError: `path` is not the folder of a finished run.
    """
    run = RunFolder(path)
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; runs lie in {RUNS_ROOT}/")
    if not run.is_finished():
        what = "training did not finish" if run.recipe.is_file() else "not a run folder"
        raise UsageError(f"{path}: {what} (there is no {run.final.name}/ with a model in it)")
    return run
