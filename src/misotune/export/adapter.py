"""Merging a LoRA adapter into its base model, and the proof that nothing was lost on the way."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from misotune.errors import RunError
from misotune.export.proof import Probe, relative_difference, tolerance_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class MergeProof:
    """How the merged model compares with base and adapter, on the probe's tokens.

    Attributes:
        num_modules: Modules with an adapter.
        num_changed: Modules whose merged weight differs from the base's.
        shift: Relative difference of logits that the adapter makes to the base model.
        difference: Relative difference of logits between the merged model and base plus adapter.
        tolerance: The largest difference that passes.
    """

    num_modules: int
    num_changed: int
    shift: float
    difference: float
    tolerance: float


def base_of_adapter(final: Path) -> str:
    """Returns the base model that an adapter names: a hub id or a folder."""
    return json.loads((final / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def merge_adapter(final: Path, revision: str | None, probe: Probe) -> tuple[Any, MergeProof]:
    """Returns the base model with the adapter merged in, in the base's dtype, and the proof.

    Args:
        final: Folder of the adapter.
        revision: The base model's, on the hub.
        probe: Tokens on which the models are compared.

    Raises:
        RunError: Base model or adapter cannot be loaded, the adapter is zero, or merging changes the model.
    """
    from peft import PeftModel

    base = _load_base(base_of_adapter(final), revision)
    dtype = str(base.dtype).removeprefix("torch.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of its own and transformers' deprecations
        model: Any = PeftModel.from_pretrained(base, str(final), torch_device="cpu").eval()
        _check_weights(model, final / ADAPTER_WEIGHTS)
        num_modules, num_changed = _count_changes(model, dtype)
        adapted = _logits(model, probe)
        with model.disable_adapter():
            plain = _logits(model, probe)
        merged = model.merge_and_unload()
    proof = MergeProof(
        num_modules=num_modules,
        num_changed=num_changed,
        shift=relative_difference(adapted, plain),
        difference=relative_difference(_logits(merged, probe), adapted),
        tolerance=tolerance_of(dtype, is_bf16_run=False),
    )
    if not proof.difference <= proof.tolerance:
        raise RunError(
            f"{final}: merging changes the model: logits differ from base plus adapter by "
            f"{proof.difference:.1e} (relative), more than {proof.tolerance:.0e}"
        )
    return merged, proof


def _load_base(name: str, revision: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, revision=revision or "main", dtype="auto").eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"the adapter's base model {name} cannot be loaded; put it where it was for training: {reason}"
        ) from error


def _check_weights(model: Any, path: Path) -> None:
    """Makes sure that the adapter's file has every weight of the adapter, and only finite ones."""
    from peft import get_peft_model_state_dict

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: the adapter cannot be read: {error}") from error
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(expected ^ set(weights)):
        raise RunError(f"{path}: not the weights that its {ADAPTER_CONFIG} describes, first: {odd[0]}")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise RunError(f"{path}: weights that are not finite, first: {name}; lower train.learning_rate")


@torch.no_grad()
def _count_changes(model: Any, dtype: str) -> tuple[int, int]:
    """Returns (modules with an adapter, those whose weight changes by merging), the second never zero."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    num_nonzero = num_changed = 0
    for layer in layers:
        weight: Tensor = layer.get_base_layer().weight
        delta: Tensor = layer.get_delta_weight(model.active_adapter)
        num_nonzero += bool(delta.any())
        num_changed += bool(((weight + delta).to(weight.dtype) != weight).any())
    if not num_nonzero:
        raise RunError("the adapter is zero in every module: nothing was trained, or its weights were not saved")
    if not num_changed:
        raise RunError(
            f"the adapter is so small that it rounds to nothing in the base model's {dtype}; train longer "
            "or with a larger train.learning_rate"
        )
    return len(layers), num_changed


@torch.no_grad()
def _logits(model: Any, probe: Probe) -> Tensor:
    return model(input_ids=probe.input_ids[None], use_cache=False).logits[0, -len(probe.logits) :].float()
