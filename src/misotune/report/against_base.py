"""What training changed in a model's scores against the model it started from, as `eval` left it in the run folder.

RUN/scores/
    TASK/                the trained model's result
    base/TASK/           the base model's, of the same prompts
    against-base/TASK/   their comparison, and the hashes of both `scores.json` that it was made of
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from misotune.report.figure_names import figure_name
from misotune.runs import RunFolder
from misotune.storage import sha256_of, write_whole

HASHES_FILE = "compared.json"
_COMPARISON_FILE = "comparison.json"
_SCORES_FILE = "scores.json"
# The verdicts of `comparison.json`, in which A is the base model.
_DIRECTIONS: Mapping[str, Literal["rose", "fell"] | None] = {
    "A is better": "fell",
    "B is better": "rose",
    "within the noise": None,
}
_TASK_NAMES = {
    "ifeval": "IFEval",
    "ifeval-flatten": "IFEval-Flatten",
    "complexbench": "ComplexBench",
    "squad": "SQuAD",
    "squad_v2": "SQuAD 2.0",
    "quac": "QuAC",
    "drop": "DROP",
}


@dataclass(frozen=True, slots=True)
class FigureChange:
    """One figure before and after training; shares of 1.

    Attributes:
        figure: Its name in `scores.json`.
        base: The base model's.
        tuned: The trained model's.
        low: Lower end of the 95 % interval of the difference.
        high: Its upper end.
        direction: Whether it rose or fell; None: no difference beyond the noise.
    """

    figure: str
    base: float
    tuned: float
    low: float
    high: float
    direction: Literal["rose", "fell"] | None

    @property
    def difference_text(self) -> str:
        """The difference in percentage points."""
        return _points(self.tuned - self.base)

    @property
    def interval_text(self) -> str:
        """Its 95 % interval in percentage points."""
        return f"{_points(self.low)} to {_points(self.high)}"


@dataclass(frozen=True, slots=True)
class AgainstBase:
    """The scores of a trained model on one task, compared with those of its base model.

    Attributes:
        task: The task's name.
        base_model: The base model as the recipe names it.
        num_prompts: Prompts that both answered.
        main_figure: The figure that decides.
        changes: All figures, in their order.
        notes: What a reader must know.
    """

    task: str
    base_model: str
    num_prompts: int
    main_figure: str
    changes: tuple[FigureChange, ...]
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> FigureChange:
        """The change of the figure that decides."""
        return next(change for change in self.changes if change.figure == self.main_figure)

    @property
    def is_loss(self) -> bool:
        """True when the trained model is worse, beyond the noise."""
        return self.main.direction == "fell"

    def finding(self) -> str:
        """Returns what happened to the figure that decides, with its interval."""
        main = self.main
        what = f"{_TASK_NAMES.get(self.task, self.task)} {figure_name(main.figure)}"
        interval = f"95 % interval {main.interval_text}"
        if main.direction is None:
            return f"{what} did not change beyond the noise ({main.difference_text} points, {interval})"
        return f"{what} {main.direction} by {main.difference_text.lstrip('+-')} points ({interval})"


def against_base_of(content: Mapping[str, Any]) -> AgainstBase:
    """Returns what the content of a `comparison.json` says, the base model's result being its first.

    Raises:
        KeyError: The content is of another form.
    """
    pair = content["pairs"][0]
    return AgainstBase(
        content["task"],
        content["results"]["A"]["model"],
        pair["num_prompts"],
        pair["main_metric"],
        tuple(
            FigureChange(line["metric"], line["a"], line["b"], line["low"], line["high"], _DIRECTIONS[line["verdict"]])
            for line in pair["overall"]
        ),
        tuple(pair["notes"]),
    )


def hash_scores(run: RunFolder, task: str) -> dict[str, str]:
    """Returns the SHA-256 of both `scores.json` of a task; without those that are not there."""
    places = {"base": run.base_scores, "tuned": run.scores}
    files = {name: folder / task / _SCORES_FILE for name, folder in places.items()}
    return {name: sha256_of(file) for name, file in files.items() if file.is_file()}


def keep_hashes(run: RunFolder, task: str, hashes: Mapping[str, str]) -> None:
    """Keeps beside a comparison of what it was made: `hash_scores`, called before the scores were read."""
    write_whole(run.against_base / task / HASHES_FILE, json.dumps(hashes, indent=2).encode() + b"\n")


def read_against_base(run: RunFolder, task: str) -> AgainstBase | None:
    """Returns the comparison of a task; None where there is none that was made of the scores that are there now."""
    folder = run.against_base / task
    hashes = hash_scores(run, task)
    try:
        if len(hashes) < 2 or _read_json(folder / HASHES_FILE) != hashes:
            return None
        return against_base_of(_read_json(folder / _COMPARISON_FILE))
    except (OSError, ValueError, LookupError, TypeError):  # not there, cut off, or of another version
        return None


def is_stale(run: RunFolder, task: str) -> bool:
    """Returns whether a task was measured on the base model, but not compared with the scores that are there now."""
    has_any = any((folder / task).is_dir() for folder in (run.base_scores, run.against_base))
    return has_any and read_against_base(run, task) is None


def tasks_of_run(run: RunFolder) -> list[str]:
    """Returns the tasks that the run was scored on, in alphabetical order."""
    return sorted(file.parent.name for file in run.scores.glob(f"*/{_SCORES_FILE}"))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _points(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text
