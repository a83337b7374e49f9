"""One training run, from a resolved recipe to a run folder with a final model."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from misotune.errors import UsageError
from misotune.recipe.schema import Recipe
from misotune.runs import RunFolder
from misotune.training.building import build_model, training_arguments, use_liger
from misotune.training.cross_entropy import CrossEntropy
from misotune.training.engine import Engine, WholeGradientNorm
from misotune.training.model import (
    end_turns,
)
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.ranks import launch
from misotune.training.ranks.preflight import appear, meet
from misotune.training.ranks.report import make_report
from misotune.training.ranks.watchdog import Watchdog
from misotune.training.resources import out_of_memory, require_disk
from misotune.training.saving.final import save_final
from misotune.training.saving.keeper import CheckpointKeeper
from misotune.training.saving.locking import lock_run
from misotune.training.saving.resuming import agreed_checkpoint, check_can_go_on, find_checkpoint, is_universal
from misotune.training.saving.trial import TrialSave
from misotune.training.seeds import StepSeeds
from misotune.training.signals import StopSignals
from misotune.training.stopping import StopGuard
from misotune.training.trainer import MisoTrainer
from misotune.training.watching.events import EventKind, record_event
from misotune.training.watching.memory import MemoryReturner
from misotune.training.watching.watch import RunWatch

# The number of devices, and so of accumulated micro-batches, may change: it does not change a step. Nor does the
# kernel, within rounding.
_SAME_WHEN_RESUMED = (
    "model",
    "dataset",
    "data",
    "new_token",
    "mode",
    "weighting",
    "weights",
    "positions",
    "loss",
    "steps",
    "samples_per_step",
    "tokens",
)
# Beside the optimizer's state lie its settings: other ones would be ignored.
_SETTINGS_WHEN_RESUMED = (
    "precision",
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
)


def check_start(
    recipe: Recipe, *, num_devices: int, resume: bool, overwrite: bool, has_run_folder: bool, watcher: Watcher
) -> dict[str, Any]:
    """Returns the plan, after everything that can be refused before ranks start; the tokens are kept for them.

    Args:
        recipe: The recipe.
        num_devices: Ranks that will train.
        resume: Whether they will go on from a checkpoint.
        overwrite: Whether an earlier run may be deleted.
        has_run_folder: Whether this machine's rank 0 writes the run folder.
        watcher: Who is told what.

    Raises:
        UsageError: The run folder, the model or the dataset cannot be used.
        RunError: The dataset cannot be trained on, or the model not exactly.
    """
    run = RunFolder(Path(recipe.output.runs_dir) / recipe.name)
    checkpoint: Path | None = None
    if has_run_folder:
        with lock_run(run.path):
            if resume:
                checkpoint = find_checkpoint(run, only_looks=True)
            else:
                _open_run_folder(run, resume=False, overwrite=overwrite, watcher=watcher)
    prepared = prepare_run(recipe, num_devices=num_devices, watcher=watcher)
    if checkpoint is not None:
        _check_same_plan(run, prepared.plan)
        check_can_go_on(checkpoint, _made(recipe, prepared.engine) | {"ranks": num_devices})
    if has_run_folder:
        require_disk(prepared.plan)
    return prepared.plan


def train(
    recipe: Recipe,
    recipe_text: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> RunFolder:
    """Trains a model and returns its run folder.

    Args:
        recipe: The recipe.
        recipe_text: The resolved recipe with origins, as it is kept in the run folder.
        resume: Go on from the last whole checkpoint.
        overwrite: Delete an earlier run of the same name.
        watcher: Who is told what.

    Raises:
        UsageError: The run folder is there already, or nothing is there to resume.
        RunError: Training cannot start or go on.
        StoppedError: A signal ended it.
    """
    watcher = watcher or Watcher()
    run = RunFolder(Path(recipe.output.runs_dir) / recipe.name)
    with StopSignals(run, is_resumed=resume, on_message=watcher.on_message) as signals, ExitStack() as stack:
        _train(recipe, recipe_text, run, signals, stack, resume=resume, overwrite=overwrite, watcher=watcher)
    return run


def _train(
    recipe: Recipe,
    recipe_text: str,
    run: RunFolder,
    signals: StopSignals,
    stack: ExitStack,
    *,
    resume: bool,
    overwrite: bool,
    watcher: Watcher,
) -> None:
    appear()
    if launch.is_main_process():
        stack.enter_context(lock_run(run.path, watcher.on_message))
    checkpoint = _open_run_folder(run, resume=resume, overwrite=overwrite, watcher=watcher)
    prepared = prepare_run(recipe, num_devices=launch.world_size(), watcher=watcher)
    require_disk(prepared.plan)
    made = _made(recipe, prepared.engine)
    if checkpoint is not None and launch.is_main_process():
        _check_same_plan(run, prepared.plan)
        check_can_go_on(checkpoint, made, watcher.on_message)
    found = meet(
        make_report(
            # With the file of deepspeed.config, which each host reads for itself.
            json.dumps(recipe.model_dump(mode="json") | {"engine": prepared.engine.config}),
            prepared.corpus.key,
            run.path,
        ),
        timeout_minutes=recipe.train.timeout_minutes,
        on_message=watcher.on_message,
    )
    watchdog = stack.enter_context(
        Watchdog(run.stacks, recipe.train.timeout_minutes, on_stop=lambda text: record_event(run, "stop", text))
    )
    if launch.is_main_process():
        if run.path.exists() and not resume:
            shutil.rmtree(run.path)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.recipe.write_text(recipe_text, encoding="utf-8")
        run.plan.write_text(json.dumps(prepared.plan, indent=2) + "\n", encoding="utf-8")
        run.environment.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if watcher.on_plan:
            watcher.on_plan(prepared.plan)
    signals.own_folder()
    watch = stack.enter_context(
        RunWatch(
            run,
            prepared.micro_batches,
            recipe=recipe.model_dump(mode="json"),
            plan=prepared.plan,
            trackers=recipe.train.report_to,
            checkpoint=checkpoint,
            on_metrics=watcher.on_metrics,
            on_message=watcher.on_message,
        )
    )
    checkpoint = agreed_checkpoint(checkpoint, made) if resume else None
    arguments = training_arguments(
        recipe, run, prepared.micro_batches, engine=prepared.engine, is_universal=is_universal(checkpoint)
    )
    is_bf16 = recipe.train.precision == "bf16"
    model = build_model(recipe, prepared.engine, is_bf16=is_bf16, new_token=prepared.new_token)
    if recipe.train.liger_kernels:
        use_liger(model, prepared.micro_batches[0], arguments.device, _teller(run, watcher), is_bf16=is_bf16)
    end_turns(model, int(prepared.corpus.samples[0].output[-1]))
    guard = StopGuard(run, prepared.micro_batches, signals, prepared.template.tokenizer)
    trials = [TrialSave(run, made)] if recipe.train.trial_save else []
    trainer = MisoTrainer(
        model,
        arguments,
        prepared.micro_batches,
        CrossEntropy(
            model,
            prepared.cross_entropy,
            is_required=recipe.train.cross_entropy != "auto",
            on_event=_teller(run, watcher),
        ),
        [
            *trials,  # before the clocks start
            *watch.callbacks,
            CheckpointKeeper(run, recipe.train.keep_checkpoints, made),
            StepSeeds(recipe.seed),
            watchdog,
            guard,
            MemoryReturner(),
            *([WholeGradientNorm(recipe.train.max_grad_norm)] if prepared.engine.clips_in_callback else []),
        ],
        processing_class=prepared.template.tokenizer,
        observers=[guard.observe, *watch.observers, watchdog.observe],
    )
    _quiet(trainer)
    for trial in trials:
        trial.trainer = trainer
    guard.watch_gradients(trainer.accelerator)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, prepared.plan) from error
    guard.check()
    save_final(trainer, run, prepared.corpus.samples[0], is_bf16=is_bf16)


def _open_run_folder(run: RunFolder, *, resume: bool, overwrite: bool, watcher: Watcher) -> Path | None:
    """Returns the checkpoint to go on from; refuses what lies in the way. No run is deleted yet."""
    if resume:
        return find_checkpoint(run, watcher.on_message)
    # Other ranks may look after the first has begun to write.
    if not launch.is_main_process():
        return None
    if run.recipe.exists() and not overwrite:
        raise UsageError(
            f"{run.path} is there already; --resume goes on with it, --overwrite deletes it, name=OTHER trains another"
        )
    if run.path.exists() and not run.recipe.exists() and any(run.path.iterdir()):
        raise UsageError(f"{run.path} holds something that is no run; choose another name or output.runs_dir")
    return None


def _made(recipe: Recipe, engine: Engine) -> dict[str, Any]:
    """Returns what checkpoints are made by, as they record it: a run goes on with the same settings alone."""
    settings = {f"train.{key}": getattr(recipe.train, key) for key in _SETTINGS_WHEN_RESUMED}
    return {
        "engine": "transformers" if engine.stage is None else "deepspeed",
        "stage": engine.stage,
        "ranks": launch.world_size(),
        "settings": {"seed": recipe.seed, **settings, "lora": recipe.lora and recipe.lora.model_dump(mode="json")},
    }


def _check_same_plan(run: RunFolder, plan: dict[str, Any]) -> None:
    """Refuses to go on with other data or another schedule than the run's: its steps would be others.

    Raises:
        UsageError: The plans differ, with the first difference.
    """
    before = run.read_plan()
    for key in _SAME_WHEN_RESUMED:
        if before.get(key) != plan[key]:
            raise UsageError(
                f"{run.path} cannot go on: its plan had {key} {before.get(key)!r}, now it is {plan[key]!r}; "
                "resume with the run's own recipe and data, or start anew with name=OTHER"
            )


def _teller(run: RunFolder, watcher: Watcher) -> Callable[[EventKind, str], None]:
    """Returns what puts a sentence among the run's events and before the user, once over all ranks."""

    def tell(kind: EventKind, text: str) -> None:
        record_event(run, kind, text)
        if watcher.on_message and launch.is_main_process():
            watcher.on_message(text)

    return tell


def _quiet(trainer: MisoTrainer) -> None:
    """Removes transformers' own printing; metrics and progress are ours."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
