"""Rules between recipe fields: each names its fields, and says in one line how they disagree.

The rules take plain values, so that the loader can still check those whose fields are fine when other keys
of the recipe are wrong, and report everything together.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over some fields.

    Attributes:
        fields: Dotted keys, in the order in which `conflict` takes their values.
        conflict: Returns what is wrong with the values, or None when they agree.
    """

    fields: tuple[str, ...]
    conflict: Callable[..., str | None]


def find_conflicts(value_of: Callable[[str], Any]) -> Iterator[tuple[Rule, str]]:
    """Yields each broken rule with its message.

    Args:
        value_of: Returns the value of a dotted key; KeyError skips the rules on that key.
    """
    for rule in RULES:
        try:
            values = [value_of(key) for key in rule.fields]
        except KeyError:
            continue
        if message := rule.conflict(*values):
            yield rule, message


def _positions_against_mode(positions: str, mode: str) -> str | None:
    if positions == "successive" and mode != "succ":
        return f"miso.positions 'successive' is for miso.mode 'succ', got miso.mode {mode!r}; use 'auto'"
    if mode == "succ" and positions in ("aligned", "start"):
        return f"miso.mode 'succ' needs miso.positions 'auto' or 'successive', got {positions!r}"
    return None


def _weights_against_weighting(weights: Mapping[str, float], weighting: str) -> str | None:
    if weighting == "fixed" and not weights:
        return "miso.weighting 'fixed' needs miso.weights, such as {full: 0.5}"
    if weights and weighting != "fixed":
        return f"miso.weights are for miso.weighting 'fixed', got miso.weighting {weighting!r}"
    return None


def _weighting_against_mode(weighting: str, mode: str) -> str | None:
    if weighting != "fixed" or mode == "para":
        return None
    why = "chunks all have one role" if mode == "succ" else "samples have one input each"
    return f"miso.weighting 'fixed' is for miso.mode 'para', got miso.mode {mode!r}, whose {why}; use 'uniform'"


def _weights_against_inputs(weights: Mapping[str, float], inputs: Sequence[str]) -> str | None:
    if not weights:
        return None
    if absent := [role for role in weights if role not in inputs]:
        return f"miso.weights names {absent[0]!r}, which miso.inputs leaves out"
    total = math.fsum(weights.values())
    others = [role for role in inputs if role not in weights]
    if not others and total < 1 - 1e-6:
        return f"miso.weights names every role of miso.inputs: its shares must sum to 1, and sum to {total:g}"
    if others and total > 1 - 1e-6:
        return f"miso.weights leaves nothing for {others[0]!r} of miso.inputs; lower a share, or leave the role out"
    return None


def _length_of_training(epochs: float | None, max_steps: int | None) -> str | None:
    if epochs is None and max_steps is None:
        return "train.epochs and train.max_steps are both null; give at least one"
    return None


def _stage_against_config(stage: int | None, config: str | None) -> str | None:
    if (stage is None) == (config is None):
        return "deepspeed needs one of deepspeed.stage (0 to 3) and deepspeed.config (a JSON file)"
    return None


def _offload_against_config(offload: str, config: str | None) -> str | None:
    if config is not None and offload != "none":
        return f"deepspeed.offload {offload!r} goes with deepspeed.stage; with deepspeed.config, {config} says it"
    return None


def _offload_against_stage(offload: str, stage: int | None) -> str | None:
    if stage is None:
        return None
    needed = {"none": 0, "optimizer": 2, "parameters": 3}[offload]
    if stage < needed:
        allowed = "3" if needed == 3 else "2 or 3"
        return f"deepspeed.offload {offload!r} needs deepspeed.stage {allowed}, got deepspeed.stage {stage}"
    return None


def _quantization_against_stage(quantization: str, stage: int | None) -> str | None:
    if quantization != "none" and stage == 3:
        return f"lora.quantization {quantization!r} cannot be divided by deepspeed.stage 3; use stage 0, 1 or 2"
    return None


RULES: tuple[Rule, ...] = (
    Rule(("miso.positions", "miso.mode"), _positions_against_mode),
    Rule(("miso.weights", "miso.weighting"), _weights_against_weighting),
    Rule(("miso.weighting", "miso.mode"), _weighting_against_mode),
    Rule(("miso.weights", "miso.inputs"), _weights_against_inputs),
    Rule(("train.epochs", "train.max_steps"), _length_of_training),
    Rule(("deepspeed.stage", "deepspeed.config"), _stage_against_config),
    Rule(("deepspeed.offload", "deepspeed.config"), _offload_against_config),
    Rule(("deepspeed.offload", "deepspeed.stage"), _offload_against_stage),
    Rule(("lora.quantization", "deepspeed.stage"), _quantization_against_stage),
)
