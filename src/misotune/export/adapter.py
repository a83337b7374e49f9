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
from misotune.quantization import check_bitsandbytes, quantization_settings

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Rounding to bfloat16 swallows small changes: of random adapters on a model of 135 million parameters, with
# matrices B of the size 1e-2, 1e-3 and 1e-4, there arrived 100, 53 and 6 percent. Below the first number the
# merged model is as good as the base; above the second it is not this adapter that was merged.
MIN_SHARE, MAX_SHARE = 0.1, 1.5


@dataclass(frozen=True, slots=True)
class MergeProof:
    """How the merged model compares with base and adapter, on the probe's tokens.

    Attributes:
        num_modules: Modules with an adapter.
        num_changed: Modules whose merged weight differs from the base's.
        share: Of the adapter's change to the weights, what arrived: 1 but for rounding.
        shift: Relative difference of logits that the adapter makes to the base model.
        difference: Relative difference of logits between the merged model and base plus adapter.
        tolerance: The largest difference that passes.
        quantization: Format that the base's linear layers were frozen in, and were written out from, or `none`.
        quantization_shift: Relative difference of logits that this made to the base model as it is published.
    """

    num_modules: int
    num_changed: int
    share: float
    shift: float
    difference: float
    tolerance: float
    quantization: str = "none"
    quantization_shift: float = 0.0


def base_of_adapter(final: Path) -> str:
    """Returns the base model that an adapter names: a hub id or a folder."""
    return json.loads((final / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def merge_adapter(
    final: Path, revision: str | None, probe: Probe, *, quantization: str = "none"
) -> tuple[Any, MergeProof]:
    """Returns the base model with the adapter merged in, in the base's dtype, and the proof.

    An adapter trained on a quantised base is merged into the quantised weights, written out: it learned to work with
    their errors, and with the published weights it would be a model that nobody trained.

    Args:
        final: Folder of the adapter.
        revision: The base model's, on the hub.
        probe: Tokens on which the models are compared.
        quantization: Format that the base was frozen in while training: `none`, `nf4` or `int8`.

    Raises:
        UsageError: The base was quantised, and bitsandbytes is not installed.
        RunError: Base model or adapter cannot be loaded, the adapter is zero, or merging changes the model.
    """
    from peft import PeftModel

    name = base_of_adapter(final)
    shift = 0.0
    base = _load_base(name, revision)
    if quantization != "none":
        published = _logits(base, probe)
        del base  # before the second one takes its memory
        base = _load_written_out(name, revision, quantization)
        shift = relative_difference(_logits(base, probe), published)
    dtype = str(base.dtype).removeprefix("torch.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of its own and transformers' deprecations
        model: Any = PeftModel.from_pretrained(base, str(final), torch_device="cpu").eval()
        _check_weights(model, final / ADAPTER_WEIGHTS)
        adapted = _logits(model, probe)
        with model.disable_adapter():
            plain = _logits(model, probe)
        num_modules, num_changed, share = _merge_layers(model, dtype)
        merged = model.merge_and_unload()
    proof = MergeProof(
        num_modules=num_modules,
        num_changed=num_changed,
        share=share,
        shift=relative_difference(adapted, plain),
        difference=relative_difference(_logits(merged, probe), adapted),
        tolerance=tolerance_of(dtype),
        quantization=quantization,
        quantization_shift=shift,
    )
    if not proof.difference <= proof.tolerance:
        raise RunError(
            f"{final}: merging changes the model: logits differ from base plus adapter by "
            f"{proof.difference:.1e} (relative), more than {proof.tolerance:.0e}"
        )
    return merged, proof


def _load_written_out(name: str, revision: str | None, quantization: str) -> Any:
    """Returns the base model with its linear layers rounded to the quantised weights, in its own dtype."""
    check_bitsandbytes(f"the export of a run with lora.quantization '{quantization}'")
    # Quantised on the CPU, where the merge is; nothing may run before the weights are written out.
    base = _load_base(
        name, revision, quantization_config=quantization_settings(quantization), device_map={"": torch.device("cpu")}
    )
    return base.dequantize().eval()


def _load_base(name: str, revision: str | None, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, revision=revision or "main", dtype="auto", **options).eval()
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
def _merge_layers(model: Any, dtype: str) -> tuple[int, int, float]:
    """Merges layer by layer; returns (modules with an adapter, modules changed, share of the delta that arrived).

    In bfloat16 the logits of a lightly trained adapter differ from the base's by no more than rounding does, so
    that they alone could not tell a merged model from the base: the weights can. The share is the projection of
    what changed on what should have: 1 but for rounding, 0 where nothing was merged.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    num_changed, arrived, expected = 0, 0.0, 0.0
    for layer in layers:
        weight: Tensor = layer.get_base_layer().weight
        before = weight.float().clone()
        delta: Tensor = layer.get_delta_weight(model.active_adapter).float()
        layer.merge()
        change = weight.float() - before
        num_changed += bool(change.any())
        arrived += float((change * delta).sum(dtype=torch.float64))
        expected += float(delta.square().sum(dtype=torch.float64))
    if not expected:
        raise RunError("the adapter is zero in every module: nothing was trained, or its weights were not saved")
    share = arrived / expected
    if not MIN_SHARE <= share <= MAX_SHARE:
        raise RunError(
            f"{share:.0%} of the adapter's change arrives in the base model's {dtype} weights; train longer "
            "or with a larger train.learning_rate, or store the base model in float32"
        )
    return len(layers), num_changed, share


@torch.no_grad()
def _logits(model: Any, probe: Probe) -> Tensor:
    return model(input_ids=probe.input_ids[None], use_cache=False).logits[0, -len(probe.logits) :].float()
