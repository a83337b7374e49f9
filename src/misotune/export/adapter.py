"""Merging a LoRA adapter into its base model, and the proof that nothing was lost on the way."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from misotune.errors import RunError
from misotune.export.probe import Probe, last_logits, relative_difference, tolerance_of
from misotune.export.reopen import has_embeddings, resize_embeddings
from misotune.export.reopening import Base
from misotune.export.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from misotune.export.weights import check_range
from misotune.quantization import check_bitsandbytes, quantization_settings

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


@dataclass(frozen=True, slots=True)
class Merged:
    """A base model with an adapter merged in.

    Attributes:
        model: The model, in the format that it is stored in.
        proof: How it compares with base and adapter.
        probe: Logits of the base model with the adapter, before it was merged.
    """

    model: Any
    proof: MergeProof
    probe: Probe


def merge_adapter(
    folder: Path, base: Base, input_ids: Tensor, *, quantization: str = "none", dtype: torch.dtype | None = None
) -> Merged:
    """Returns the base model with the adapter merged in, and the proof.

    An adapter trained on a quantised base is merged into the quantised weights, written out: it learned to work with
    their errors, and with the published weights it would be a model that nobody trained.

    Args:
        folder: The adapter.
        base: The model that it was trained on.
        input_ids: Tokens on which the models are compared.
        quantization: Format that the base was frozen in while training: `none`, `nf4` or `int8`.
        dtype: Format to merge and store in; None: the base model's own.

    Raises:
        UsageError: The base was quantised, and bitsandbytes is not installed.
        RunError: Base model or adapter cannot be loaded, the adapter is zero, or merging changes the model.
    """
    from peft import PeftModel

    shift = 0.0
    plain_base = _load_base(base)
    if quantization != "none":
        published = last_logits(plain_base, input_ids)
        del plain_base  # before the second one takes its memory
        plain_base = _load_written_out(base, quantization)
        shift = relative_difference(last_logits(plain_base, input_ids), published)
    if dtype == torch.float32:
        plain_base.float()  # to compare in it, too
    weights = _read_weights(folder / ADAPTER_WEIGHTS)
    resize_embeddings(plain_base, weights, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of its own and transformers' deprecations
        model: Any = PeftModel.from_pretrained(plain_base, str(folder), torch_device="cpu").eval()
        _check_weights(model, folder / ADAPTER_WEIGHTS, weights)
        computed_in = str(model.dtype).removeprefix("torch.")
        adapted = last_logits(model, input_ids)
        with model.disable_adapter():
            plain = last_logits(model, input_ids)
        num_modules, num_changed, share = _merge_layers(model, dtype)
        merged = model.merge_and_unload()
    if dtype is not None:
        store_weights(merged, dtype)
    proof = MergeProof(
        num_modules=num_modules,
        num_changed=num_changed,
        share=share,
        shift=relative_difference(adapted, plain),
        difference=relative_difference(last_logits(merged, input_ids), adapted),
        tolerance=tolerance_of(computed_in, str(merged.dtype).removeprefix("torch.")),
        quantization=quantization,
        quantization_shift=shift,
    )
    if not proof.difference <= proof.tolerance:
        raise RunError(
            f"{folder}: merging changes the model: logits differ from base plus adapter by "
            f"{proof.difference:.1e} (relative), more than {proof.tolerance:.0e}"
        )
    return Merged(merged, proof, Probe(input_ids, adapted, computed_in, "the unmerged adapter"))


def _load_written_out(base: Base, quantization: str) -> Any:
    """Returns the base model with its linear layers rounded to the quantised weights, in its own dtype."""
    check_bitsandbytes(f"the export of a run with lora.quantization '{quantization}'")
    # Quantised on the CPU, where the merge is; nothing may run before the weights are written out.
    model = _load_base(
        base, quantization_config=quantization_settings(quantization), device_map={"": torch.device("cpu")}
    )
    return model.dequantize().eval()


def _load_base(base: Base, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            base.name, revision=base.revision or "main", dtype="auto", trust_remote_code=False, **options
        ).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"the adapter's base model {base.name} cannot be loaded; put it where it was for training: {reason}"
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: the adapter cannot be read: {error}") from error


def _check_weights(model: Any, path: Path, weights: dict[str, Tensor]) -> None:
    """Makes sure that the adapter's file has every weight of the adapter, and only finite ones."""
    from peft import get_peft_model_state_dict

    expected = set(get_peft_model_state_dict(model, save_embedding_layers=has_embeddings(weights)))
    if odd := sorted(expected ^ set(weights)):
        raise RunError(f"{path}: not the weights that its {ADAPTER_CONFIG} describes, first: {odd[0]}")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise RunError(f"{path}: weights that are not finite, first: {name}; lower train.learning_rate")


@torch.no_grad()
def _merge_layers(model: Any, dtype: torch.dtype | None) -> tuple[int, int, float]:
    """Merges layer by layer; returns (modules with an adapter, modules changed, share of the delta that arrived).

    Each in float32, and rounded once. In bfloat16 the logits of a lightly trained adapter differ from the base's by no
    more than rounding does, so that they alone could not tell a merged model from the base: the weights can. The share
    is the projection of what changed on what should have: 1 but for rounding, 0 where nothing was merged.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    ]
    num_changed, arrived, expected = 0, 0.0, 0.0
    stored = dtype or model.dtype
    for name, layer in layers:
        weight: Tensor = layer.get_base_layer().weight
        stored = dtype or weight.dtype
        before = weight.data.to(stored).float()
        start = weight.data.float()
        weight.data = start.clone()
        layer.merge()
        delta = weight.data - start
        rounded = weight.data.to(stored)
        check_range(name, rounded, weight.data)
        change = rounded.float() - before
        weight.data = rounded
        num_changed += bool(change.any())
        arrived += float((change * delta).sum(dtype=torch.float64))
        expected += float(delta.square().sum(dtype=torch.float64))
    if not expected:
        raise RunError("the adapter is zero in every module: nothing was trained, or its weights were not saved")
    share = arrived / expected
    if not MIN_SHARE <= share <= MAX_SHARE:
        kind = str(stored).removeprefix("torch.")
        raise RunError(
            f"{share:.0%} of the adapter's change arrives in the base model's {kind} weights; train longer "
            "or with a larger train.learning_rate, or export with --dtype float32"
        )
    return len(layers), num_changed, share


@torch.no_grad()
def store_weights(model: Any, dtype: torch.dtype) -> None:
    """Changes the weights' format in place; not that of buffers, whose rotary frequencies would lose digits.

    Raises:
        RunError: A weight is too large for the format.
    """
    for name, weight in model.named_parameters():
        rounded = weight.data.to(dtype)
        check_range(name, rounded, weight.data)
        weight.data = rounded
    model.config.dtype = dtype
