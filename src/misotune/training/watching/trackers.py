"""TensorBoard, Weights & Biases and trackio: they get numbers, the recipe and the plan; never a text of a row.

Nothing is asked on the terminal, and nothing leaves the machine unless the tracker's own settings say so: for
Weights & Biases `WANDB_MODE` or `WANDB_API_KEY`, for trackio `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL`.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from misotune.errors import RunError, UsageError
from misotune.runs import RunFolder
from misotune.training.watching.metrics import StepMetrics

PROJECT = "misotune"


class Tracker(Protocol):
    """One open tracker."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Takes the numbers of a step."""
        ...

    def close(self, exit_code: int) -> None:
        """Writes what is not written yet; nothing is logged afterwards."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed.

    Raises:
        UsageError: One is not, with the command that installs it.
    """
    for name in names:
        if find_spec(name) is None:
            raise UsageError(f"train.report_to: {name} is not installed; pip install {name}")


def open_trackers(
    names: Sequence[str], run: RunFolder, recipe: Mapping[str, Any], plan: Mapping[str, Any], first_step: int
) -> dict[str, Tracker]:
    """Returns the open trackers by name.

    Args:
        names: Which.
        run: The run; trackers with files write below its folder `trackers`.
        recipe: The recipe as plain values.
        plan: The plan.
        first_step: Optimizer steps done before: 0, or those of the checkpoint that the run goes on from.

    Raises:
        RunError: One cannot be opened, with its own words.
    """
    opened: dict[str, Tracker] = {}
    for name in names:
        folder = run.trackers / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            opened[name] = _TRACKERS[name](run, folder, {"recipe": recipe, "plan": plan}, first_step)
        except Exception as error:
            for tracker in opened.values():
                with contextlib.suppress(Exception):
                    tracker.close(1)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"train.report_to: {name} cannot be started ({reason}); leave it out to train") from error
    return opened


def numbers_of(metrics: StepMetrics) -> dict[str, float]:
    """Returns the numbers of a step under the names that trackers show them by."""
    numbers = {
        "train/loss": metrics.loss,
        "train/learning_rate": metrics.learning_rate,
        "train/grad_norm": metrics.grad_norm,
        "train/epoch": metrics.epoch,
        "speed/trained_tokens_per_s": metrics.trained_tokens_per_s,
        "speed/total_tokens_per_s": metrics.total_tokens_per_s,
        "memory/peak_gib": metrics.peak_memory_gib,
    }
    for kind, groups in metrics.groups.items():
        numbers |= {f"loss_by_{kind}/{name}": group.loss for name, group in groups.items()}
    return numbers


class _TensorBoard:
    def __init__(self, run: RunFolder, folder: Path, settings: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        for name, values in settings.items():
            self._writer.add_text(name, _as_code(values), first_step)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: RunFolder, folder: Path, settings: Mapping[str, Any], first_step: int) -> None:
        wandb = import_module("wandb")
        is_online = "WANDB_API_KEY" in os.environ and not _is_offline()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=_id_of(run, folder, is_new=not first_step),
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE") or ("online" if is_online else "offline"),
            config=dict(settings),
            # The terminal's lines, the code, the repository and the command line are no numbers.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class _Trackio:
    def __init__(self, run: RunFolder, folder: Path, settings: Mapping[str, Any], first_step: int) -> None:
        # It writes below TRACKIO_DIR, where its dashboard looks for the runs of all projects.
        names = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if _is_offline() else ()
        with _silence(), _without(*names):
            self._run = import_module("trackio").init(
                project=PROJECT,
                name=f"{run.name}-{_id_of(run, folder, is_new=not first_step)}",
                config=dict(settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        with _silence():
            self._run.log(dict(numbers), step=step)

    def close(self, exit_code: int) -> None:
        with _silence():
            self._run.finish()


_TRACKERS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}


def _id_of(run: RunFolder, folder: Path, *, is_new: bool) -> str:
    """Returns the id that a run keeps when it is resumed, and that no other run has."""
    path = folder / "id"
    if is_new or not path.is_file():
        drawn = sha256(str(run.path.resolve()).encode() + os.urandom(16)).hexdigest()[:12]
        path.write_text(drawn, encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _as_code(values: Any) -> str:
    """Returns values as a block of code in Markdown, which is what TensorBoard shows texts by."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _is_offline() -> bool:
    """Whether the command was given `--offline`, or its variable is set by hand."""
    return os.environ.get("HF_HUB_OFFLINE") == "1"


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Takes variables out of the environment for a while."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _silence() -> contextlib.AbstractContextManager[Any]:
    """Standard output belongs to the result of the command, as JSON or text."""
    return contextlib.redirect_stdout(io.StringIO())
