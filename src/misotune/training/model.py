"""Loading the model and tokenizer to be trained, and adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from misotune.attention import ATTENTION_NAME, check_model, register
from misotune.attention.model import describe_kernel
from misotune.errors import UsageError
from misotune.hub import require_model
from misotune.layout.template import read_template
from misotune.quantization import keep_layout, quantization_settings


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model to start from: a hub id or folder, its revision, and a template where it has none."""

    name: str
    revision: str | None = None
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """LoRA: rank, scale and where; `seed` is that of its random matrices."""

    rank: int
    alpha: float
    dropout: float
    target_modules: str | list[str]
    use_rslora: bool
    seed: int = 0


def load_tokenizer(source: ModelSource) -> Any:
    """Returns the model's tokenizer, with the chat template that is named.

    Raises:
        UsageError: There is no such model, or no such template.
    """
    tokenizer = _load(AutoTokenizer, source)
    if source.chat_template is not None:
        tokenizer.chat_template = read_template(source.chat_template)
    return tokenizer


def load_config(source: ModelSource, max_length: int) -> Any:
    """Returns the model's configuration, once MISO attention is known to be exact for it.

    Args:
        source: The model.
        max_length: Tokens of the longest pair of an input with the output.

    Raises:
        UnsupportedModelError: It would not be.
        UsageError: There is no such model.
    """
    config = _load(AutoConfig, source)
    check_model(config, max_length)
    return config


def choose_kernel(config: Any, name: str, *, is_bf16: bool) -> str:
    """Returns the attention kernel that training takes on this machine, and why.

    Raises:
        UsageError: The kernel is forced, and cannot do what the model needs.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return describe_kernel(config, name, device, torch.bfloat16 if is_bf16 else torch.float32)
    except ValueError as error:
        raise UsageError(f"miso.kernel: {config.model_type}: {error}") from error


def load_model(source: ModelSource, dtype: torch.dtype | str, quantization: str = "none") -> Any:
    """Returns the model with MISO attention, ready to train.

    Args:
        source: The model.
        dtype: Format of its weights; `auto`: as they are stored.
        quantization: `none`, or in which format its linear layers are frozen: `nf4` or `int8`.

    Raises:
        UsageError: There is no such model, or ZeRO-3 would divide its quantised weights.
    """
    register()
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": ATTENTION_NAME}
    if quantization != "none":
        if is_deepspeed_zero3_enabled():
            raise UsageError(
                f"lora.quantization '{quantization}' goes with DeepSpeed's stages 0 to 2: quantised weights cannot "
                "be divided; lower the stage, or leave lora.quantization out"
            )
        is_bf16 = dtype in ("auto", torch.bfloat16)
        options["quantization_config"] = quantization_settings(quantization, is_bf16=is_bf16)
    model = _load(AutoModelForCausalLM, source, **options)
    if quantization != "none":
        keep_layout(model)
    model.config.use_cache = False
    return model


def add_adapter(model: Any, settings: AdapterSettings, new_rows: Mapping[str, int] | None = None) -> Any:
    """Returns the model with LoRA adapters; only they are trained.

    Args:
        model: The model.
        settings: The adapters'.
        new_rows: By the name of the module with embeddings, the row that is trained beside them.

    Raises:
        UsageError: An adapter and a row are wanted of the same module.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    for name in new_rows or {}:
        if not isinstance(targets, str) and name.rpartition(".")[2] in targets:
            raise UsageError(
                f"lora.target_modules: {name.rpartition('.')[2]} gets a row for the token that the dataset adds, which "
                "goes without an adapter there; leave it out"
            )

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - peft divides, whole or not
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        use_rslora=settings.use_rslora,
        trainable_token_indices={name: [row] for name, row in new_rows.items()} if new_rows else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        adapted: Any = get_peft_model(model, config)
    if new_rows:
        # peft would save the whole embeddings, since there are more rows than the base model's: the trained ones do.
        adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def checkpoint_activations(model: Any) -> None:
    """Makes the backward pass compute activations again, without reentry: keyword arguments survive it."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:  # transformers before 5.20
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def end_turns(model: Any, end_of_turn_id: int) -> None:
    """Makes generation stop at the token that training ended every response with."""
    known = model.generation_config.eos_token_id
    ids = [known] if isinstance(known, int) else list(known or [])
    if end_of_turn_id not in ids:
        model.generation_config.eos_token_id = [*ids, end_of_turn_id] if ids else end_of_turn_id


def _load(loader: Any, source: ModelSource, **options: Any) -> Any:
    require_model(source.name, source.revision)
    try:
        return loader.from_pretrained(source.name, revision=source.revision or "main", **options)
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"model.name: {source.name} cannot be loaded: {reason}") from error
