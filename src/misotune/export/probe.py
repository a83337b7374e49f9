"""Token ids with a model's logits on them, and how far other logits are from these."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from misotune.errors import RunError
from misotune.layout import ChatTemplate

# Largest relative difference of logits (see `relative_difference`) that passes. On a model of 135 million
# parameters the order of the additions alone (another attention kernel) made 2e-2 in bfloat16 and 1.5e-6 in
# float32. One projection of one layer lost or reordered makes 2e-1 and more; in float32, noise of 1e-5 on
# every weight makes 3e-4, which in bfloat16 is lost in the rounding.
TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}

# The same where float32 weights were rounded on the way: once to bfloat16 made 6e-2 on that model, computed in float32.
ROUNDING_TOLERANCES: Mapping[str, float] = {"bfloat16": 1e-1, "float16": 5e-2}

TRAINED_MODEL = "the trained model"
PROBE_TOKENS = 256
PROBE_LOGITS = 16

MESSAGES = ({"role": "user", "content": "Name three rivers, one on each line."},)
# What a model is asked to read that has no training rows: a turn of each kind, of some length.
_CONVERSATION = (
    {
        "role": "user",
        "content": "Write two sentences about the river Elbe. Mention its source, and end with a question.",
    },
    {
        "role": "assistant",
        "content": "The Elbe rises in the Giant Mountains of Bohemia at a height of 1,386 metres. Have you seen it?",
    },
)


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids (T,) of one plain sequence, and a model's logits (last positions, V or columns) on them.

    Attributes:
        input_ids: The tokens.
        logits: The logits.
        dtype: In which they were computed, with the weights as they are saved.
        owner: Whose logits they are, for people.
        columns: Entries of the vocabulary that the logits are of; None: all.
        template_sha256: Of the text of training's chat template; None: not known.
    """

    input_ids: Tensor
    logits: Tensor
    dtype: str
    owner: str = TRAINED_MODEL
    columns: Tensor | None = None
    template_sha256: str | None = None


def read_probe(path: Path) -> Probe:
    """Returns the probe of a run.

    Raises:
        RunError: There is none, or it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            return Probe(
                file.get_tensor("input_ids").long(),
                file.get_tensor("logits").float(),
                facts["dtype"],
                template_sha256=facts.get("chat_template_sha256"),
            )
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(
            f"{path}: no probe of the trained model's logits can be read ({error}), so the export could "
            "not be proved; train again: misotune train RECIPE --overwrite"
        ) from error


def probe_ids(template: ChatTemplate, run_probe: Path | None) -> Tensor:
    """Returns the tokens to compare models on: those of the run's probe if it has one, else a fixed conversation."""
    if run_probe is not None and run_probe.is_file():
        return read_probe(run_probe).input_ids
    return torch.tensor(template.encode(_CONVERSATION, add_generation_prompt=False)[:PROBE_TOKENS])


@torch.no_grad()
def last_logits(model: Any, ids: Tensor) -> Tensor:
    """Returns a model's logits (last positions, V) on a sequence, in float32 on the CPU."""
    device = next(model.parameters()).device
    logits = model(input_ids=ids[None].to(device), use_cache=False).logits[0, -PROBE_LOGITS:]
    return logits.float().cpu()


def relative_difference(logits: Tensor, reference: Tensor) -> float:
    """Returns the root mean square of the difference by that of the reference, each position centred.

    Centred, because a constant added to all logits of a position changes no probability.

    >>> import torch
    >>> reference = torch.tensor([[1.0, 2.0, 3.0]])
    >>> relative_difference(reference + 7, reference), relative_difference(reference * 1.5, reference)
    (0.0, 0.5)
    """
    centred, expected = (x - x.mean(-1, keepdim=True) for x in (logits.double(), reference.double()))
    return float((centred - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def tolerance_of(*dtypes: str, rounded_to: str | None = None) -> float:
    """Returns the tolerance between models that computed in these dtypes: that of the coarsest.

    Args:
        dtypes: The formats.
        rounded_to: Format that one model's weights were rounded to; None: they were not.
    """
    tolerances = [TOLERANCES[dtype] for dtype in dtypes]
    return max(*tolerances, ROUNDING_TOLERANCES.get(rounded_to or "", 0.0))
