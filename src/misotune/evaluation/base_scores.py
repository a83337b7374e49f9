"""The scores of the model that a run started from: kept in the run folder, and compared with the run's own.

The model is scored once, on the prompts and with the settings of the run; `misotune.report.against_base` says what lies
where, and reads the comparison back.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misotune.errors import DataError, RunError, UsageError
from misotune.evaluation.models import ModelSource
from misotune.evaluation.results import SCORES_FILE
from misotune.evaluation.scores import Scores
from misotune.hub import require_model
from misotune.recipe.loading import load_recipe
from misotune.report.against_base import AgainstBase, against_base_of, hash_scores, keep_hashes
from misotune.runs import RunFolder
from misotune.storage import whole_folder

# How fast responses came and where, which does not decide them.
_NOT_DECIDING = ("batch_size", "device", "num_processes")
_DTYPES = ("bfloat16", "float32")


def base_of(source: ModelSource) -> ModelSource:
    """Returns the model that a run started from.

    It is read with the run's tokenizer and chat template: the token ids of both models' prompts are the same, and a
    base model that had no template can answer.

    Args:
        source: A run's model.

    Raises:
        UsageError: `source` is no run, or its base model cannot be had.
        RecipeError: The run's recipe is missing or wrong.
    """
    run = source.run
    if run is None:
        raise UsageError(
            f"{source.name} is no run, and only a run says what model it started from; leave out --base, or name the "
            "run's folder with --model"
        )
    name, revision = _base_model(run)
    require_model(name, revision)
    has_tokenizer = (run.final / "tokenizer_config.json").is_file()
    return ModelSource(
        _label(name, revision), name, revision=revision, tokenizer=str(run.final) if has_tokenizer else None
    )


def base_dtype(settings: Mapping[str, Any]) -> str:
    """Returns the dtype to load the base model in: that of the run's scores, whose `settings` these are."""
    dtype = settings.get("dtype")
    return dtype if dtype in _DTYPES else "auto"


def kept_base(run: RunFolder, task: str, *, prompts_sha256: str, settings: Mapping[str, Any]) -> Path | None:
    """Returns the result folder of the base model, or None where it is to be scored (again).

    Args:
        run: The run.
        task: The task's name.
        prompts_sha256: Of the run's scores on it.
        settings: Of the same. All must be alike (limit, longest response, dtype, judge) but those that only decide
            how fast responses come.

    Raises:
        DataError: The kept `scores.json` cannot be read.
    """
    folder = run.base_scores / task
    if not (folder / SCORES_FILE).is_file():
        return None
    kept = _read_scores(folder)
    is_same = (
        kept.get("model") == _label(*_base_model(run))
        and kept.get("prompts_sha256") == prompts_sha256
        and _deciding(kept.get("settings", {})) == _deciding(settings)
    )
    return folder if is_same else None


def keep_as_base(run: RunFolder, scores: Scores) -> Path:
    """Copies a result of the base model, made before there was a run, into the run and returns its folder there.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = run.base_scores / scores.task
    with whole_folder(folder, "result") as partial:
        shutil.copytree(scores.folder, partial, dirs_exist_ok=True)
    return folder


def compare_with_base(run: RunFolder, task: str) -> AgainstBase | None:
    """Compares a run's scores with its base model's, writes the comparison into the run and returns what it says.

    None, and nothing is written, where one of the two is missing or they are not of the same prompts and settings.
    An older comparison then stays, and is known to be stale by the hashes kept in it.

    Raises:
        DataError: A file of a result is wrong.
        RunError: The comparison cannot be written.
    """
    tuned, base = run.scores / task, run.base_scores / task
    if not all((folder / SCORES_FILE).is_file() for folder in (tuned, base)):
        return None
    hashes = hash_scores(run, task)
    scores = _read_scores(tuned)
    prompts_sha256, settings = scores.get("prompts_sha256", ""), scores.get("settings", {})
    if kept_base(run, task, prompts_sha256=prompts_sha256, settings=settings) is None:
        return None

    from misotune.evaluation.comparison.compare import compare_results
    from misotune.evaluation.comparison.results import write_comparison

    comparison = compare_results([base, tuned])
    folder = run.against_base / task
    write_comparison(folder, comparison)
    try:
        keep_hashes(run, task, hashes)
    except OSError as error:
        raise RunError(f"{folder}: the comparison cannot be written: {error.strerror or error}") from error
    return against_base_of(comparison.to_json())


def _base_model(run: RunFolder) -> tuple[str, str | None]:
    model = load_recipe(run.recipe).recipe.model
    return model.name, model.revision


def _label(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{revision}"


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    # As `scores.json` has them, where a tuple is a list.
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in _NOT_DECIDING}))


def _read_scores(folder: Path) -> dict[str, Any]:
    path = folder / SCORES_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); score the task again") from error
