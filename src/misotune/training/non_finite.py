"""What is kept of a step whose loss or gradient is not finite: its rows, as tensors and as text.

runs/NAME/non_finite/step-N/
    micro-batch-I.safetensors   what the model was given, and the loss of each trained token
    micro-batch-I.json          the rows: ids, texts, losses by token
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from misotune.layout import EncodedSample
from misotune.storage import write_whole
from misotune.training.batches import MicroBatches

# Of an item of `MicroBatches`; the layout of attention follows from the rows.
_TENSORS = ("input_ids", "position_ids", "logits_to_keep", "targets", "target_weights")


def save_micro_batch(
    folder: Path, micro_batches: MicroBatches, index: int, losses: Float[Tensor, "P"], tokenizer: Any
) -> None:
    """Writes one micro-batch.

    Args:
        folder: `non_finite/step-N/`; made if it is not there.
        micro_batches: The run's micro-batches.
        index: Which of them.
        losses: Of its trained tokens.
        tokenizer: To turn tokens into text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    item = micro_batches[index]
    tensors = {name: item[name].contiguous() for name in _TENSORS if item[name] is not None}
    losses = losses.detach().float().cpu()
    write_whole(folder / f"micro-batch-{index}.safetensors", save({**tensors, "losses": losses}))
    members = micro_batches.members(index)  # of an empty row none
    parts = losses.split([member.num_trained_tokens for member in members]) if members else ()
    rows = [_row(member, part, tokenizer) for member, part in zip(members, parts, strict=True)]
    content = {"micro_batch": index, "weighting": micro_batches.weighting, "rows": rows}
    path = folder / f"micro-batch-{index}.json"
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _row(sample: EncodedSample, losses: Tensor, tokenizer: Any) -> dict[str, Any]:
    roles: Sequence[str | None] = sample.roles or [None] * len(sample.inputs)
    tokens = [tokenizer.decode([token]) for token in sample.output[sample.is_trained].tolist()]
    return {
        "id": sample.id,
        "inputs": [
            {"role": role, "text": tokenizer.decode(part.tolist())}
            for role, part in zip(roles, sample.inputs, strict=True)
        ],
        "output": tokenizer.decode(sample.output.tolist()),
        "losses": [[token, _number(loss)] for token, loss in zip(tokens, losses.tolist(), strict=True)],
    }


def _number(value: float) -> float | str:
    """Returns a number as JSON has it: JSON knows no `nan`."""
    return value if math.isfinite(value) else str(value)
