"""What a model's name stands for: a run, a folder or a hub id."""

from dataclasses import dataclass
from pathlib import Path

from misotune.errors import UsageError
from misotune.runs import RunFolder, run_at

SCORES_ROOT = Path("scores")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to evaluate.

    Attributes:
        name: As it was named.
        path: What transformers loads: a folder or a hub id.
        run: The run that trained it, or None.
        revision: Branch, tag or commit on the hub; None: the newest.
        tokenizer: The folder whose tokenizer and chat template it is read with; None: its own.
    """

    name: str
    path: str
    run: RunFolder | None = None
    revision: str | None = None
    tokenizer: str | None = None

    def result_folder(self, task: str, variant: str | None = None) -> Path:
        """Returns where the scores of a task go unless asked otherwise.

        Args:
            task: The task's name.
            variant: A folder's name for scores of a model that answers otherwise than as it is; None: as it is.
        """
        root = SCORES_ROOT / label(self.name) if self.run is None else self.run.scores
        return root / task if variant is None else root / variant / task


def label(name: str) -> str:
    """Returns a folder's name for a model's name.

    >>> label("HuggingFaceTB/SmolLM2-135M-Instruct"), label("/models/llama/")
    ('HuggingFaceTB--SmolLM2-135M-Instruct', 'llama')
    """
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() or _looks_like_path(name) else name.replace("/", "--")


def source_of_run(run: RunFolder) -> ModelSource:
    """Returns the final model of a finished run."""
    return ModelSource(str(run.path), str(run.final), run)


def find_model(name: str) -> ModelSource:
    """Returns the model that `name` stands for: a run folder, a folder with a model, or a hub id.

    Raises:
        UsageError: `name` is a path with no model in it.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or _looks_like_path(name):
            raise UsageError(f"{name}: no such folder; --model takes a run, a folder with a model, or a hub id")
        return ModelSource(name, name)
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return ModelSource(name, str(folder))
    return source_of_run(run_at(folder))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1
