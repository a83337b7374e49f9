"""The one loss: the sum of token losses over the trained tokens of the whole optimizer step, by their number."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_losses(logits: Float[Tensor, "1 P V"], targets: Int[Tensor, "P"]) -> Float[Tensor, "P"]:
    """Returns the cross-entropy of each trained token, in float32.

    Args:
        logits: Logits at the predictors alone, the token before each trained one; may be of no tokens.
        targets: The trained token ids.
    """
    return torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="none")


def step_loss(
    losses: Float[Tensor, "P"],
    num_trained_in_step: int,
    num_devices: int,
    weights: Float[Tensor, "P"] | None = None,
) -> Float[Tensor, ""]:
    """Returns a micro-batch's share of the step's loss.

    Summed over a step's micro-batches this is the (weighted) mean over all trained tokens of the step, whatever
    the devices, the accumulation and the packing. Devices' gradients are averaged, not summed, by DDP and
    DeepSpeed: hence the factor `num_devices`.

    Args:
        losses: Of each trained token of the micro-batch; may be none.
        num_trained_in_step: Trained tokens of the step, over all devices and micro-batches.
        num_devices: Devices that share the step.
        weights: Of each token; over the whole step their mean is 1. None: all tokens count the same.
    """
    return (losses if weights is None else losses * weights).sum() * (num_devices / num_trained_in_step)
