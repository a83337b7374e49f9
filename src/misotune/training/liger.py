"""The one file that knows Liger's kernels (package liger-kernel, CUDA)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from misotune.errors import RunError, UsageError
from misotune.packages import require_package

# Before it, the fused loss of single tokens (reduction "none") had a wrong gradient of the weight.
MIN_VERSION = "0.8.5"

# Trained tokens of the first row that are compared.
_NUM_COMPARED = 256

# All but its losses: the loss is ours, over the trained tokens of the whole step.
_WITHOUT_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def check_liger(what: str, *, has_cuda: bool) -> None:
    """Makes sure that Liger's kernels can be used.

    Args:
        what: The key that asks for them, for the message.
        has_cuda: Whether the run is on a CUDA device.

    Raises:
        UsageError: They cannot.
    """
    if not has_cuda:
        raise UsageError(f"{what} needs a CUDA device, and there is none here")
    require_package(what, "liger-kernel", MIN_VERSION)


def patch_with_liger(model: Any) -> None:
    """Gives a loaded model Liger's norms, rotary embeddings and gated MLPs, and leaves its loss alone.

    Raises:
        UsageError: Liger has none for this kind of model.
    """
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    model_type = model.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UsageError(f"train.liger_kernels: liger-kernel has no kernels for {model_type}; set it to false")
    _apply_liger_kernel_to_instance(model, **_WITHOUT_LOSS)


def patch_and_compare(
    model: Any,
    arguments: Mapping[str, Any],
    device: torch.device,
    *,
    is_bf16: bool,
    patch: Callable[[Any], None] = patch_with_liger,
) -> str:
    """Changes a model's kernels, and returns a sentence on how far its logits on a row are from what they were.

    Args:
        model: The model; it is moved to the device.
        arguments: Of its forward call on the first row.
        device: Where it will train.
        is_bf16: Whether it computes under bfloat16 autocast.
        patch: What changes it.

    Raises:
        UsageError: There are no kernels for this kind of model.
        RunError: The logits differ by more than rounding.
    """
    model.to(device).eval()
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    moved["logits_to_keep"] = moved["logits_to_keep"][:_NUM_COMPARED]

    def logits_now() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            return model(**moved, use_cache=False).logits.float()

    before = logits_now()
    patch(model)
    difference = float((logits_now() - before).norm() / before.norm().clamp(min=1e-12))
    model.train()
    tolerance = 5e-2 if is_bf16 or model.dtype != torch.float32 else 1e-3
    found = f"logits of the first row differ from those of transformers' own by {difference:.1e} (relative"
    if len(before[0]) and not difference <= tolerance:
        raise RunError(f"train.liger_kernels: {found}), more than {tolerance:.0e}; set it to false")
    return f"Liger kernels: {found}; {tolerance:.0e} passes)"


def liger_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Returns the token losses (P) of hidden (P, H), weight (V, H) and bias (V) in Liger's fused kernel."""
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy,
    )

    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return liger_fused_linear_cross_entropy(
        hidden, weight, targets, bias=bias, reduction="none", accum_dtype=torch.float32
    )
