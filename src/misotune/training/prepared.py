"""All that a run needs before its model is loaded: tokens, order, engine, plan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from misotune.errors import UsageError
from misotune.layout import ChatTemplate
from misotune.quantization import check_bitsandbytes
from misotune.recipe.schema import Recipe
from misotune.training.added_token import NewToken, describe_token, load_template_for
from misotune.training.batches import MicroBatches
from misotune.training.building import build_model, chunking_of, model_plan, model_source
from misotune.training.corpus import Corpus, read_corpus
from misotune.training.cross_entropy import CrossEntropy, Kind, choose_cross_entropy
from misotune.training.deepspeed_file import Decided, read_deepspeed_file
from misotune.training.engine import Engine, choose_engine
from misotune.training.liger import check_liger
from misotune.training.model import (
    choose_kernel,
    load_config,
)
from misotune.training.plan import make_plan
from misotune.training.ranks import launch
from misotune.training.resources import out_of_memory, plan_resources
from misotune.training.schedule import make_schedule
from misotune.training.shards import Limits
from misotune.training.speed import earlier_speed, measure_row, time_plan
from misotune.training.watching.metrics import StepMetrics
from misotune.training.watching.trackers import check_trackers


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
    new_token: NewToken | None
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
    if recipe.deepspeed and recipe.deepspeed.config is not None:
        read_deepspeed_file(Path(recipe.deepspeed.config))  # what is wrong with it is said before tokens are made
    source = model_source(recipe)
    config = load_config(source, recipe.data.max_length)
    kernel = choose_kernel(config, recipe.miso.kernel, is_bf16=recipe.train.precision == "bf16")
    has_cuda = torch.cuda.is_available()
    if recipe.train.liger_kernels:
        check_liger("train.liger_kernels", has_cuda=has_cuda)
    if recipe.lora and recipe.lora.quantization != "none":
        check_bitsandbytes(f"lora.quantization '{recipe.lora.quantization}'")
    cross_entropy, cross_entropy_text = choose_cross_entropy(recipe.train.cross_entropy, config, has_cuda=has_cuda)
    template, new_token = load_template_for(source, Path(recipe.data.path))
    if new_token is not None and recipe.lora and recipe.lora.quantization != "none":
        raise UsageError(
            f"lora.quantization: {recipe.data.path} needs the new token {new_token.text}, and quantised models are "
            "trained without new tokens; leave lora.quantization out"
        )
    if new_token is not None and recipe.lora and recipe.deepspeed and recipe.deepspeed.stage == 3 and not has_cuda:
        raise UsageError(
            f"deepspeed.stage: {recipe.data.path} needs the new token {new_token.text}, whose row peft takes out of "
            "ZeRO-3's pieces on CUDA alone; use stage 2, or leave lora out"
        )
    chunking = chunking_of(recipe, template)
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
        "new_token": describe_token(new_token, config),
    }
    if launch.is_main_process():
        plan |= plan_resources(
            model_plan(recipe, config, engine, cross_entropy),
            micro_batches,
            Path(recipe.output.runs_dir) / recipe.name,
            save_every_steps=recipe.train.save_every_steps,
            keep_checkpoints=recipe.train.keep_checkpoints,
            has_trial_save=recipe.train.trial_save,
        )
        plan["time"] = earlier_speed(Path(recipe.output.runs_dir), plan)
    return PreparedRun(template, new_token, corpus, micro_batches, plan, cross_entropy, engine)


def measure_plan(recipe: Recipe, prepared: PreparedRun) -> dict[str, Any]:
    """Returns the plan with the time and memory of its heaviest row, run on this one device with the true model.

    Raises:
        RunError: The row does not fit.
    """
    plan, is_bf16 = prepared.plan, recipe.train.precision == "bf16"
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = build_model(recipe, prepared.engine, is_bf16=is_bf16, new_token=prepared.new_token)
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
