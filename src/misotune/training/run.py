"""One training run, from a resolved recipe to a run folder with a final model."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from misotune.errors import UsageError
from misotune.layout import ChatTemplate, Chunking
from misotune.quantization import check_bitsandbytes
from misotune.recipe.schema import LoraSection, Recipe
from misotune.runs import RunFolder
from misotune.training.batches import NOT_FOR_THE_MODEL, MicroBatches
from misotune.training.corpus import Corpus, read_corpus
from misotune.training.cross_entropy import CrossEntropy, Kind, choose_cross_entropy
from misotune.training.deepspeed_file import Decided
from misotune.training.engine import Engine, WholeGradientNorm, choose_engine
from misotune.training.liger import check_liger, patch_and_compare, patch_with_liger
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
from misotune.training.ranks.preflight import appear, meet
from misotune.training.ranks.report import make_report
from misotune.training.ranks.watchdog import Watchdog
from misotune.training.resources import ModelPlan, out_of_memory, plan_resources, require_disk
from misotune.training.saving.final import save_final
from misotune.training.saving.keeper import CheckpointKeeper
from misotune.training.saving.locking import lock_run
from misotune.training.saving.resuming import agreed_checkpoint, check_can_go_on, find_checkpoint, is_universal
from misotune.training.saving.trial import TrialSave
from misotune.training.schedule import make_schedule
from misotune.training.seeds import StepSeeds
from misotune.training.shards import Limits
from misotune.training.signals import StopSignals
from misotune.training.speed import earlier_speed, measure_row, time_plan
from misotune.training.stopping import StopGuard
from misotune.training.trainer import MisoTrainer, trainer_arguments
from misotune.training.watching.events import EventKind, record_event
from misotune.training.watching.memory import MemoryReturner
from misotune.training.watching.metrics import StepMetrics
from misotune.training.watching.trackers import check_trackers
from misotune.training.watching.watch import RunWatch

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
    cross_entropy: Kind
    engine: Engine


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
    check_trackers(recipe.train.report_to)
    source = _model_source(recipe)
    config = load_config(source, recipe.data.max_length)
    kernel = choose_kernel(config, recipe.miso.kernel, is_bf16=recipe.train.precision == "bf16")
    has_cuda = torch.cuda.is_available()
    if recipe.train.liger_kernels:
        check_liger("train.liger_kernels", has_cuda=has_cuda)
    if recipe.lora and recipe.lora.quantization != "none":
        check_bitsandbytes(f"lora.quantization '{recipe.lora.quantization}'")
    cross_entropy, cross_entropy_text = choose_cross_entropy(recipe.train.cross_entropy, config, has_cuda=has_cuda)
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
    train = recipe.train
    decided = Decided(
        is_bf16=train.precision == "bf16",
        accumulation=schedule.accumulation,
        num_devices=num_devices,
        max_grad_norm=train.max_grad_norm,
        learning_rate=train.learning_rate,
        schedule=train.schedule,
        betas=(train.adam_beta1, train.adam_beta2),
        epsilon=train.adam_epsilon,
        weight_decay=train.weight_decay,
        is_quantized=recipe.lora is not None and recipe.lora.quantization != "none",
    )
    engine = choose_engine(recipe.deepspeed, decided)
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
    plan = make_plan(recipe, corpus, micro_batches, kernel) | {
        "cross_entropy": cross_entropy_text,
        "engine": engine.name,
    }
    if launch.is_main_process():
        plan |= plan_resources(
            _model_plan(recipe, config, engine, cross_entropy),
            micro_batches,
            Path(recipe.output.runs_dir) / recipe.name,
            save_every_steps=recipe.train.save_every_steps,
            keep_checkpoints=recipe.train.keep_checkpoints,
            has_trial_save=recipe.train.trial_save,
        )
        plan["time"] = earlier_speed(Path(recipe.output.runs_dir), plan)
    return PreparedRun(template, corpus, micro_batches, plan, cross_entropy, engine)


def measure_plan(recipe: Recipe, prepared: PreparedRun) -> dict[str, Any]:
    """Returns the plan with the time and memory of its heaviest row, run on this one device with the true model.

    Raises:
        RunError: The row does not fit.
    """
    plan, is_bf16 = prepared.plan, recipe.train.precision == "bf16"
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = _model(recipe, prepared.engine, is_bf16=is_bf16)
    index = plan["memory"].get("row", {}).get("index", 0)
    try:
        measured = measure_row(
            model,
            CrossEntropy(model, prepared.cross_entropy, is_required=recipe.train.cross_entropy != "auto"),
            prepared.micro_batches[index],
            device=device,
            autocast=torch.bfloat16 if is_bf16 and not prepared.engine.has_master_weights else None,
        )
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, plan) from error
    source = f"one row of {measured['tokens']:,} tokens on one device, times {plan['devices']} device(s)"
    return plan | {"measured": measured, "time": time_plan(plan, measured["tokens_per_s"] * plan["devices"], source)}


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
    if resume and launch.is_main_process():
        assert checkpoint is not None
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
    arguments = _arguments(
        recipe, run, prepared.micro_batches, engine=prepared.engine, is_universal=is_universal(checkpoint)
    )
    is_bf16 = recipe.train.precision == "bf16"
    model = _model(recipe, prepared.engine, is_bf16=is_bf16)
    if recipe.train.liger_kernels:
        _use_liger(model, prepared.micro_batches[0], arguments.device, _teller(run, watcher), is_bf16=is_bf16)
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


def _model(recipe: Recipe, engine: Engine, *, is_bf16: bool) -> Any:
    quantization = recipe.lora.quantization if recipe.lora else "none"
    model = load_model(_model_source(recipe), _weights_format(recipe, engine, is_bf16=is_bf16), quantization)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
    if recipe.lora is None:
        return model
    return add_adapter(model, _adapter_settings(recipe.lora, recipe.seed))


def _adapter_settings(lora: LoraSection, seed: int) -> AdapterSettings:
    targets = lora.target_modules
    return AdapterSettings(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.use_rslora,
        seed=seed,
    )


def _model_plan(recipe: Recipe, config: Any, engine: Engine, cross_entropy: Kind) -> ModelPlan:
    is_bf16 = recipe.train.precision == "bf16"
    return ModelPlan(
        config=config,
        dtype=_weights_format(recipe, engine, is_bf16=is_bf16),
        adapter=_adapter_settings(recipe.lora, recipe.seed) if recipe.lora else None,
        quantization=recipe.lora.quantization if recipe.lora else "none",
        has_checkpointing=recipe.train.gradient_checkpointing,
        is_bf16=is_bf16,
        engine=engine,
        cross_entropy=cross_entropy,
    )


def _use_liger(
    model: Any,
    first: Mapping[str, Any],
    device: torch.device,
    tell: Callable[[EventKind, str], None],
    *,
    is_bf16: bool,
) -> None:
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if is_deepspeed_zero3_enabled():
        patch_with_liger(base)
        tell("start", "Liger kernels: not compared with transformers' own, since ZeRO-3 holds the weights in pieces")
        return
    arguments = {key: value for key, value in first.items() if key not in NOT_FOR_THE_MODEL}
    tell("start", patch_and_compare(base, arguments, device, is_bf16=is_bf16))


def _teller(run: RunFolder, watcher: Watcher) -> Callable[[EventKind, str], None]:
    """Returns what puts a sentence among the run's events and before the user, once over all ranks."""

    def tell(kind: EventKind, text: str) -> None:
        record_event(run, kind, text)
        if watcher.on_message and launch.is_main_process():
            watcher.on_message(text)

    return tell


def _weights_format(recipe: Recipe, engine: Engine, *, is_bf16: bool) -> torch.dtype | str:
    """Returns the format that weights are loaded in; `auto` is that of the checkpoint."""
    if engine.has_master_weights:
        return torch.bfloat16 if is_bf16 else torch.float32  # DeepSpeed keeps float32 master weights itself
    if recipe.lora is not None and is_bf16:
        return "auto"  # frozen, and the export merges the adapter into just these
    # Trained weights stay in float32 under autocast: at a learning rate of 1e-5, updates of bfloat16 weights
    # would round to nothing.
    return torch.float32


def _arguments(
    recipe: Recipe, run: RunFolder, micro_batches: MicroBatches, *, engine: Engine, is_universal: bool
) -> TrainingArguments:
    train = recipe.train
    is_bf16 = train.precision == "bf16"
    deepspeed = engine.config
    if deepspeed is not None and is_universal:
        deepspeed = {**deepspeed, "checkpoint": {**deepspeed.get("checkpoint", {}), "load_universal": True}}
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
        max_grad_norm=0.0 if engine.clips_in_callback else train.max_grad_norm,
        is_bf16=is_bf16 and not engine.does_autocast,
        log_every_steps=train.log_every_steps,
        save_every_steps=train.save_every_steps,
        seed=recipe.seed,
        num_devices=micro_batches.schedule.num_devices,
        deepspeed=deepspeed,
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
