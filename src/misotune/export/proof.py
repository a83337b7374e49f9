"""The proof of an export: opened in a fresh process by stock transformers, it is what was trained."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from misotune.errors import RunError
from misotune.layout import ChatTemplate

# Largest relative difference of logits (see `relative_difference`) that passes. On a model of 135 million
# parameters the order of the additions alone (another attention kernel) made 2e-2 in bfloat16 and 1.5e-6 in
# float32. One projection of one layer lost or reordered makes 2e-1 and more; in float32, noise of 1e-5 on
# every weight makes 3e-4, which in bfloat16 is lost in the rounding.
TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}

MESSAGES = ({"role": "user", "content": "Name three rivers, one on each line."},)
MAX_NEW_TOKENS = 16

_SCRIPT = Path(__file__).with_name("reopen.py")


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids (T,) of one plain sequence, and the trained model's logits (last positions, V) on them.

    Attributes:
        path: The file.
        input_ids: The tokens.
        logits: The logits.
        dtype: In which they were computed, with the weights as they are saved.
    """

    path: Path
    input_ids: Tensor
    logits: Tensor
    dtype: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found in the checkpoint, reopened.

    Attributes:
        difference: Relative difference of its logits from those of the trained model.
        tolerance: The largest difference that passes.
        num_positions: Positions compared.
        num_same_token: Positions at which both models choose the same next token.
        num_parameters: Weights, all of them finite.
        dtype: Of the weights.
        device: Where it was opened.
        attention: Attention that transformers chose.
        end_of_turn_id: The token that ends a response; generation stops there.
        num_new_tokens: Tokens of the greedy response.
        is_ended: True when the response ended within the few tokens it was given.
        response: The greedy response to a fixed question.
    """

    difference: float
    tolerance: float
    num_positions: int
    num_same_token: int
    num_parameters: int
    dtype: str
    device: str
    attention: str
    end_of_turn_id: int
    num_new_tokens: int
    is_ended: bool
    response: str


def read_probe(path: Path) -> Probe:
    """Returns the probe of a run.

    Raises:
        RunError: There is none, or it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            dtype = (file.metadata() or {})["dtype"]
            return Probe(path, file.get_tensor("input_ids").long(), file.get_tensor("logits").float(), dtype)
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(
            f"{path}: no probe of the trained model's logits can be read ({error}), so the export could "
            "not be proved; train again: misotune train RECIPE --overwrite"
        ) from error


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


def tolerance_of(*dtypes: str) -> float:
    """Returns the tolerance between models that computed in these dtypes: that of the coarsest."""
    return max(TOLERANCES[dtype] for dtype in dtypes)


def end_of_turn_id(template: ChatTemplate) -> int:
    """Returns the token that training ends every response with.

    Raises:
        LayoutError: The template ends the assistant's turn with no special token.
    """
    conversation = [*MESSAGES, {"role": "assistant", "content": "The Elbe."}]
    ids = template.encode(conversation, add_generation_prompt=False)
    return ids[template.end_of_turn(ids)]


def prove(folder: Path, probe: Probe, template: ChatTemplate, *, is_merged: bool) -> Proof:
    """Returns the proof that the checkpoint in `folder` is the trained model.

    Args:
        folder: The checkpoint.
        probe: The trained model's logits.
        template: The chat template that was trained with.
        is_merged: The weights are not those of training but base and adapter merged, rounded to their format.

    Raises:
        RunError: It is not, or stock transformers cannot open it.
    """
    with tempfile.TemporaryDirectory(prefix="misotune-export-") as scratch:
        found, logits = _reopen(folder, probe, "auto" if is_merged else probe.dtype, Path(scratch))
    end_id = end_of_turn_id(template)
    _check_contents(found)
    _check_chat(found, template, end_id)
    tolerance = tolerance_of(found["computed_in"], probe.dtype)
    difference = _check_logits(logits, probe.logits, tolerance)
    return Proof(
        difference=difference,
        tolerance=tolerance,
        num_positions=len(logits),
        num_same_token=int((logits.argmax(-1) == probe.logits.argmax(-1)).sum()),
        num_parameters=found["num_parameters"],
        dtype=found["dtype"],
        device=found["device"],
        attention=found["attention"],
        end_of_turn_id=end_id,
        num_new_tokens=len(found["response_ids"]),
        is_ended=found["response_ids"][-1] in _as_list(found["end_ids"]),
        response=found["response"],
    )


def _reopen(folder: Path, probe: Probe, dtype: str, scratch: Path) -> tuple[dict[str, Any], Tensor]:
    request, answer, logits = (scratch / name for name in ("request.json", "answer.json", "logits.safetensors"))
    content = {
        "checkpoint": str(folder.resolve()),
        "probe": str(probe.path.resolve()),
        "num_logits": len(probe.logits),
        "dtype": dtype,
        "messages": MESSAGES,
        "max_new_tokens": MAX_NEW_TOKENS,
        "answer": str(answer),
        "logits": str(logits),
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    # -P keeps the script's own folder off sys.path. Not -I: clusters put transformers on PYTHONPATH.
    # Off line: the checkpoint must be whole in itself.
    done = subprocess.run(
        [sys.executable, "-P", str(_SCRIPT), str(request)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}, the process may have been out of memory"
        raise RunError(f"the export is refused: stock transformers cannot open and run it: {reason}")
    return json.loads(answer.read_text(encoding="utf-8")), load_file(logits)["logits"]


def _check_contents(found: Mapping[str, Any]) -> None:
    for what, names in found["problems"].items():
        raise RunError(f"the export is refused: {what.replace('_', ' ')}: {_some(names)}")
    if found["not_finite"]:
        raise RunError(
            f"the export is refused: weights that are not finite: {_some(found['not_finite'])}; training broke "
            "down, lower train.learning_rate"
        )


def _check_chat(found: Mapping[str, Any], template: ChatTemplate, end_id: int) -> None:
    if found["prompt_ids"] != template.encode(MESSAGES, add_generation_prompt=True):
        raise RunError("the export is refused: its chat template gives other tokens than training's")
    if end_id not in _as_list(found["end_ids"]):
        raise RunError(
            f"the export is refused: generation does not stop at token {end_id}, which ends a response in training"
        )
    if not found["response_ids"]:
        raise RunError("the export is refused: it generates nothing")


def _check_logits(logits: Tensor, expected: Tensor, tolerance: float) -> float:
    if logits.shape != expected.shape:
        raise RunError(
            f"the export is refused: its logits have the shape {tuple(logits.shape)}, the trained model's "
            f"{tuple(expected.shape)}"
        )
    difference = relative_difference(logits, expected)
    if not difference <= tolerance:  # NaN fails too
        raise RunError(
            f"the export is refused: its logits differ from the trained model's by {difference:.1e} (relative), "
            f"more than {tolerance:.0e}: the weights are not those of the end of training"
        )
    return difference


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
