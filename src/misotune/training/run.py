"""One training run, from a resolved recipe to a run folder with a final model."""

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from misotune.errors import RunError, UsageError
from misotune.layout import ChatTemplate, Chunking
from misotune.recipe.schema import Recipe
from misotune.runs import RunFolder
from misotune.training.batches import MicroBatches
from misotune.training.corpus import Corpus, read_corpus
from misotune.training.engine import deepspeed_config
from misotune.training.model import (
    AdapterSettings,
    ModelSource,
    add_adapter,
    checkpoint_activations,
    choose_kernel,
    end_turns,
    load_config,
    load_model,
    load_template,
)
from misotune.training.plan import make_plan
from misotune.training.ranks import launch
from misotune.training.ranks.preflight import RankReport, meet
from misotune.training.ranks.watchdog import Watchdog
from misotune.training.saving.checkpoints import last_whole_checkpoint
from misotune.training.saving.final import save_final
from misotune.training.saving.keeper import CheckpointKeeper
from misotune.training.schedule import make_schedule
from misotune.training.shards import Limits
from misotune.training.stopping import StopGuard
from misotune.training.trainer import MisoTrainer, trainer_arguments
from misotune.training.watching.memory import MemoryReturner
from misotune.training.watching.metrics import MetricsWriter, StepMetrics

# The number of devices, and so of accumulated micro-batches, may change: it does not change a step. Nor does the
# kernel, within rounding.
_SAME_WHEN_RESUMED = (
    "model",
    "dataset",
    "data",
    "mode",
    "weighting",
    "weights",
    "positions",
    "loss",
    "steps",
    "samples_per_step",
    "tokens",
)


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a run tells while it goes on; every function may be left out.

    Attributes:
        on_encode: Called with (rows done, rows) while the dataset is turned into tokens.
        on_plan: Called with the plan before the first step.
        on_metrics: Called with each line of metrics.
        on_message: Called with a sentence that the user should see.
    """

    on_encode: Callable[[int, int], None] | None = None
    on_plan: Callable[[dict[str, Any]], None] | None = None
    on_metrics: Callable[[StepMetrics], None] | None = None
    on_message: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """What a run needs before its model is loaded."""

    template: ChatTemplate
    corpus: Corpus
    micro_batches: MicroBatches
    plan: dict[str, Any]


def prepare_run(recipe: Recipe, *, num_devices: int, watcher: Watcher) -> PreparedRun:
    """Returns the encoded corpus, the order of its samples and the plan; no model is loaded.

    Raises:
        UsageError: The model or dataset cannot be found.
        RunError: The dataset cannot be trained on, or the model not exactly.
    """
    if not Path(recipe.data.path).exists():
        raise UsageError(
            f"data.path: {recipe.data.path} is not there; make it with misotune prepare, or set data.path=PATH"
        )
    source = _model_source(recipe)
    config = load_config(source, recipe.data.max_length)
    kernel = choose_kernel(config, recipe.miso.kernel, is_bf16=recipe.train.precision == "bf16")
    template = load_template(source)
    chunking = _chunking(recipe, template)
    corpus = read_corpus(
        Path(recipe.data.path),
        template,
        mode=recipe.miso.mode,
        roles=recipe.miso.inputs,
        limits=Limits(recipe.data.max_length, recipe.data.too_long, recipe.data.max_sample_length),
        max_dropped=recipe.data.max_dropped,
        chunking=chunking,
        on_progress=watcher.on_encode if launch.is_main_process() else None,
        on_message=watcher.on_message if launch.is_main_process() else None,
    )
    lengths: list[int] = corpus.samples.num_tokens.tolist()
    if chunking:
        lengths = [length + chunking.room(sample) for length, sample in zip(lengths, corpus.samples, strict=True)]
    schedule = make_schedule(
        lengths,
        batch_size=recipe.train.batch_size,
        epochs=recipe.train.epochs,
        max_steps=recipe.train.max_steps,
        num_devices=num_devices,
        capacity=recipe.row_capacity if recipe.train.pack else None,
        seed=recipe.seed,
    )
    micro_batches = MicroBatches(
        corpus.samples,
        schedule,
        positions=recipe.miso.chosen_positions,
        weighting=recipe.miso.weighting,
        kernel=recipe.miso.kernel,
        shares={**recipe.miso.weights},
        chunking=chunking,
        loss=recipe.train.loss,
    )
    return PreparedRun(template, corpus, micro_batches, make_plan(recipe, corpus, micro_batches, kernel))


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
    """
    watcher = watcher or Watcher()
    run = RunFolder(Path(recipe.output.runs_dir) / recipe.name)
    checkpoint = _open_run_folder(run, resume=resume, overwrite=overwrite, watcher=watcher)
    prepared = prepare_run(recipe, num_devices=launch.world_size(), watcher=watcher)
    if launch.is_main_process():
        if resume:
            _check_same_plan(run, prepared.plan)
        elif run.path.exists():
            shutil.rmtree(run.path)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.recipe.write_text(recipe_text, encoding="utf-8")
        run.plan.write_text(json.dumps(prepared.plan, indent=2) + "\n", encoding="utf-8")
        if watcher.on_plan:
            watcher.on_plan(prepared.plan)
    meet(
        RankReport(
            recipe=sha256(recipe.model_dump_json().encode()).hexdigest(),
            data=prepared.corpus.key,
            versions={},
            device="cuda" if torch.cuda.is_available() else "cpu",
            host=platform.node(),
        ),
        timeout_minutes=recipe.train.timeout_minutes,
    )
    arguments = _arguments(recipe, run, prepared.micro_batches)
    is_bf16 = recipe.train.precision == "bf16"
    model = _model(recipe, is_bf16=is_bf16)
    end_turns(model, int(prepared.corpus.samples[0].output[-1]))
    guard = StopGuard(run, prepared.micro_batches)
    trainer = MisoTrainer(
        model,
        arguments,
        prepared.micro_batches,
        [
            MetricsWriter(run.metrics, prepared.micro_batches, watcher.on_metrics),
            CheckpointKeeper(run.checkpoints, recipe.train.keep_checkpoints),
            Watchdog(run.stacks, recipe.train.timeout_minutes),
            guard,
            MemoryReturner(),
        ],
        processing_class=prepared.template.tokenizer,
        observers=[guard.observe],
    )
    _quiet(trainer)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the device ran out of memory; lower train.tokens_per_micro_batch, set data.max_sample_length, or set "
            f"train.gradient_checkpointing=true: {str(error).splitlines()[0]}"
        ) from error
    guard.check()
    save_final(trainer, run, prepared.corpus.samples[0], is_bf16=is_bf16)
    return run


def _open_run_folder(run: RunFolder, *, resume: bool, overwrite: bool, watcher: Watcher) -> Path | None:
    """Returns the checkpoint to go on from; refuses what lies in the way. Nothing is deleted yet."""
    if not resume:
        # Other ranks may look after the first has begun to write.
        if not launch.is_main_process():
            return None
        if run.recipe.exists() and not overwrite:
            raise UsageError(
                f"{run.path} is there already; --resume goes on with it, --overwrite deletes it, "
                "name=OTHER trains another"
            )
        if run.path.exists() and not run.recipe.exists() and any(run.path.iterdir()):
            raise UsageError(f"{run.path} holds something that is no run; choose another name or output.runs_dir")
        return None
    if run.is_finished():
        raise UsageError(f"{run.path} is finished; there is nothing to resume")
    checkpoint, skipped = last_whole_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise UsageError(
            f"{run.path} has no whole checkpoint to resume from{': ' if skipped else ''}{'; '.join(skipped)}"
        )
    if watcher.on_message and launch.is_main_process():
        for line in skipped:
            watcher.on_message(line)
        watcher.on_message(f"resuming from {checkpoint}")
    return checkpoint


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


def _model(recipe: Recipe, *, is_bf16: bool) -> Any:
    model = load_model(_model_source(recipe), _weights_format(recipe, is_bf16=is_bf16))
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
    if recipe.lora is None:
        return model
    targets = recipe.lora.target_modules
    return add_adapter(
        model,
        AdapterSettings(
            rank=recipe.lora.rank,
            alpha=recipe.lora.alpha,
            dropout=recipe.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=recipe.lora.use_rslora,
        ),
    )


def _weights_format(recipe: Recipe, *, is_bf16: bool) -> torch.dtype | str:
    """Returns the format that weights are loaded in; `auto` is that of the checkpoint."""
    if recipe.deepspeed is not None:
        return torch.bfloat16 if is_bf16 else torch.float32  # DeepSpeed keeps float32 master weights itself
    if recipe.lora is not None and is_bf16:
        return "auto"  # frozen, and the export merges the adapter into just these
    # Trained weights stay in float32 under autocast: at a learning rate of 1e-5, updates of bfloat16 weights
    # would round to nothing.
    return torch.float32


def _arguments(recipe: Recipe, run: RunFolder, micro_batches: MicroBatches) -> TrainingArguments:
    train = recipe.train
    is_bf16 = train.precision == "bf16"
    zero = recipe.deepspeed
    return trainer_arguments(
        folder=str(run.checkpoints),
        num_steps=micro_batches.schedule.num_steps,
        accumulation=micro_batches.schedule.accumulation,
        learning_rate=train.learning_rate,
        schedule=train.schedule,
        warmup_ratio=train.warmup_ratio,
        weight_decay=train.weight_decay,
        betas=(train.adam_beta1, train.adam_beta2),
        epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        is_bf16=is_bf16,
        log_every_steps=train.log_every_steps,
        save_every_steps=train.save_every_steps,
        seed=recipe.seed,
        num_devices=micro_batches.schedule.num_devices,
        deepspeed=None if zero is None else deepspeed_config(zero, is_bf16=is_bf16),
    )


def _chunking(recipe: Recipe, template: ChatTemplate) -> Chunking | None:
    if recipe.miso.mode != "succ":
        return None
    bos = template.tokenizer.bos_token_id
    if recipe.miso.chunk_prefix == "bos" and bos is None:
        raise UsageError("miso.chunk_prefix: the tokenizer has no BOS token; use none or system")
    return Chunking(recipe.miso.chunks, recipe.seed, recipe.miso.chunk_prefix, bos)


def _model_source(recipe: Recipe) -> ModelSource:
    return ModelSource(recipe.model.name, recipe.model.revision, recipe.model.chat_template)


def _quiet(trainer: MisoTrainer) -> None:
    """Removes transformers' own printing; metrics and progress are ours."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
