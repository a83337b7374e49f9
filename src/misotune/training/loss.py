"""The one loss: the sum of token losses over the trained tokens of the whole optimizer step, by their number."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def step_loss(
    logits: Float[Tensor, "1 P V"], targets: Int[Tensor, "P"], num_trained_in_step: int, num_devices: int
) -> Float[Tensor, ""]:
    """Returns a micro-batch's share of the step's mean loss per trained token.

    Summed over a step's micro-batches this is the mean over all trained tokens of the step, whatever the
    devices, the accumulation and the packing. Devices' gradients are averaged, not summed, by DDP and DeepSpeed:
    hence the factor `num_devices`.

    Args:
        logits: Logits at the predictors alone, the token before each trained one; may be of no tokens.
        targets: The trained token ids.
        num_trained_in_step: Trained tokens of the step, over all devices and micro-batches.
        num_devices: Devices that share the step.
    """
    total = torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum")
    return total * (num_devices / num_trained_in_step)
