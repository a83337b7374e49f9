"""What a recipe says, as a model, its adapter, and transformers' settings."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from misotune.errors import UsageError
from misotune.layout import ChatTemplate, Chunking
from misotune.recipe.schema import LoraSection, Recipe
from misotune.runs import RunFolder
from misotune.training.added_token import NewToken, add_rows, embedding_names
from misotune.training.batches import NOT_FOR_THE_MODEL, MicroBatches
from misotune.training.cross_entropy import Kind
from misotune.training.engine import Engine
from misotune.training.liger import patch_and_compare, patch_with_liger
from misotune.training.model import (
    AdapterSettings,
    ModelSource,
    add_adapter,
    checkpoint_activations,
    load_model,
)
from misotune.training.resources import ModelPlan
from misotune.training.trainer import trainer_arguments
from misotune.training.watching.events import EventKind


def model_source(recipe: Recipe) -> ModelSource:
    """Returns where the recipe's model is, and its chat template."""
    return ModelSource(recipe.model.name, recipe.model.revision, recipe.model.chat_template)


def chunking_of(recipe: Recipe, template: ChatTemplate) -> Chunking | None:
    """Returns how inputs are cut in mode succ; None: they stay whole.

    Raises:
        UsageError: Chunks are to begin with a BOS token, and the tokenizer has none.
    """
    if recipe.miso.mode != "succ":
        return None
    bos = template.tokenizer.bos_token_id
    if recipe.miso.chunk_prefix == "bos" and bos is None:
        raise UsageError("miso.chunk_prefix: the tokenizer has no BOS token; use none or system")
    return Chunking(recipe.miso.chunks, recipe.seed, recipe.miso.chunk_prefix, bos)


def weights_format(recipe: Recipe, engine: Engine, *, is_bf16: bool) -> torch.dtype | str:
    """Returns the format that weights are loaded in; `auto` is that of the checkpoint."""
    if engine.has_master_weights:
        return torch.bfloat16 if is_bf16 else torch.float32  # DeepSpeed keeps float32 master weights itself
    if recipe.lora is not None and is_bf16:
        return "auto"  # frozen, and the export merges the adapter into just these
    # Trained weights stay in float32 under autocast: at a learning rate of 1e-5, updates of bfloat16 weights
    # would round to nothing.
    return torch.float32


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


def build_model(recipe: Recipe, engine: Engine, *, is_bf16: bool, new_token: NewToken | None = None) -> Any:
    """Returns the recipe's model, loaded for training, with its adapter and the rows of a new token."""
    quantization = recipe.lora.quantization if recipe.lora else "none"
    model = load_model(model_source(recipe), weights_format(recipe, engine, is_bf16=is_bf16), quantization)
    if new_token is not None:
        add_rows(model, new_token)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
    if recipe.lora is None:
        return model
    new_rows = None if new_token is None else dict.fromkeys(embedding_names(model), new_token.id)
    return add_adapter(model, _adapter_settings(recipe.lora, recipe.seed), new_rows)


def model_plan(recipe: Recipe, config: Any, engine: Engine, cross_entropy: Kind) -> ModelPlan:
    """Returns what the estimate of memory and disk needs to know of the model."""
    is_bf16 = recipe.train.precision == "bf16"
    return ModelPlan(
        config=config,
        dtype=weights_format(recipe, engine, is_bf16=is_bf16),
        adapter=_adapter_settings(recipe.lora, recipe.seed) if recipe.lora else None,
        quantization=recipe.lora.quantization if recipe.lora else "none",
        has_checkpointing=recipe.train.gradient_checkpointing,
        is_bf16=is_bf16,
        engine=engine,
        cross_entropy=cross_entropy,
    )


def training_arguments(
    recipe: Recipe, run: RunFolder, micro_batches: MicroBatches, *, engine: Engine, is_universal: bool
) -> TrainingArguments:
    """Returns transformers' settings of the run; to be made before the model, which ZeRO-3 divides as it loads."""
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


def use_liger(
    model: Any,
    first: Mapping[str, Any],
    device: torch.device,
    tell: Callable[[EventKind, str], None],
    *,
    is_bf16: bool,
) -> None:
    """Puts Liger's kernels into the model, and compares its logits with transformers' own on the first row."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if is_deepspeed_zero3_enabled():
        patch_with_liger(base)
        tell("start", "Liger kernels: not compared with transformers' own, since ZeRO-3 holds the weights in pieces")
        return
    arguments = {key: value for key, value in first.items() if key not in NOT_FOR_THE_MODEL}
    tell("start", patch_and_compare(base, arguments, device, is_bf16=is_bf16))
