"""What is exported: a run, a checkpoint of one of its steps, an adapter or a model from elsewhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import RunError, UsageError
from misotune.export.reopening import Base
from misotune.export.shards import find_shards
from misotune.recipe.loading import load_recipe
from misotune.recipe.schema import Recipe
from misotune.runs import RunFolder, run_at
from misotune.storage import sha256_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG = "config.json"

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A folder to be exported.

    Attributes:
        path: As the user named it.
        folder: Where weights, configuration and tokenizer lie.
        run: The run that it is of; None: it is from elsewhere.
        is_final: Whether it is the end of the run, of which the run has a probe.
        shards: Files of DeepSpeed's ranks that hold the weights in float32; None: there are none.
    """

    path: Path
    folder: Path
    run: RunFolder | None = None
    is_final: bool = False
    shards: Path | None = None

    @property
    def is_adapter(self) -> bool:
        """True for an adapter of peft."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @property
    def title(self) -> str:
        """What it is, for people."""
        if self.run is None:
            return self.folder.resolve().name
        name = self.run.path.resolve().name
        return f"the run {name}" if self.is_final else f"{self.folder.name} of the run {name}"

    def recipe(self) -> Recipe | None:
        """Returns the recipe that it was trained by."""
        return load_recipe(self.run.recipe).recipe if self.run else None


def find_source(path: Path) -> Source:
    """Returns what there is to be exported at `path`.

    Args:
        path: A run; its `final/`; one of its `checkpoints/step-N`; a folder of an adapter or a model.

    Raises:
        UsageError: Nothing that can be exported, or a run without its end.
        RunError: A checkpoint is not what was written.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder")
    if RunFolder(path).recipe.is_file() or RunFolder(path).is_finished():
        return source_of_run(_finished(path))
    if path.name == "final" and RunFolder(path.parent).recipe.is_file():
        return source_of_run(run_at(path.parent))
    shards = find_shards(path)
    if not any((path / name).is_file() for name in (ADAPTER_CONFIG, CONFIG)):
        what = "DeepSpeed's files without a config.json beside them" if shards else "neither a run nor a model"
        raise UsageError(
            f"{path}: {what}; name a run, RUN/checkpoints/step-N, or a folder with {CONFIG} or {ADAPTER_CONFIG}"
        )
    check_manifest(path)
    run = RunFolder(path.resolve().parents[1]) if path.resolve().parent.name == "checkpoints" else None
    return Source(path, path, run if run and run.recipe.is_file() else None, shards=shards)


def source_of_run(run: RunFolder) -> Source:
    """Returns the end of a finished run."""
    return Source(run.path, run.final, run, is_final=True)


def check_manifest(folder: Path) -> None:
    """Makes sure that a checkpoint of `train` has the files that were written, by their sizes and hashes.

    The optimizer's file is passed over: nothing of it is exported. A folder without a manifest passes.

    Raises:
        RunError: A file is missing, cut or changed.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        return
    try:
        entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return  # somebody else's
    for name, entry in entries.items():
        file = folder / name
        if name == "optimizer.pt":
            continue
        if not file.is_file():
            raise RunError(f"{folder}: {name} is missing; export another step")
        if (size := file.stat().st_size) != entry["bytes"]:
            raise RunError(f"{folder}: {name} has {size:,} bytes of {entry['bytes']:,}; export another step")
        if sha256_of(file) != entry["sha256"]:
            raise RunError(f"{folder}: {name} has changed since it was saved; export another step")


def base_of_adapter(folder: Path, recipe: Recipe | None = None) -> Base:
    """Returns the base model that an adapter names, at the revision and in the format that it was trained on."""
    from misotune.quantization import quantization_settings

    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name = config.get("base_model_name_or_path")
    if not name:
        raise UsageError(f"{folder}: its {ADAPTER_CONFIG} names no base model; set base_model_name_or_path in it")
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{folder}: a {config.get('peft_type')} adapter; LoRA adapters can be exported")
    revision = recipe.model.revision if recipe and name == recipe.model.name else config.get("revision")
    kind = quantization_of(recipe)
    settings = None if kind == "none" else quantization_settings(kind).to_diff_dict()
    return Base(name, revision, settings)


def quantization_of(recipe: Recipe | None) -> str:
    """Returns the format that a run's base model was frozen in; `none` where nothing says otherwise."""
    return recipe.lora.quantization if recipe and recipe.lora else "none"


def _finished(path: Path) -> RunFolder:
    run = RunFolder(path)
    steps = sorted(run.checkpoints.glob("step-*"), key=lambda step: int(step.name.removeprefix("step-")))
    if not run.is_finished() and steps:
        raise UsageError(
            f"{path}: training did not finish (there is no final/ with a model in it); "
            f"its last checkpoint can be exported: misotune export {steps[-1]}"
        )
    return run_at(path)
