"""The proof of an export: opened in a fresh process by stock transformers, it is what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from torch import Tensor

from misotune.errors import RunError
from misotune.export.probe import MESSAGES, TRAINED_MODEL, Probe, relative_difference, tolerance_of
from misotune.export.reopening import Base, Opening, open_checkpoint
from misotune.layout import ChatTemplate

REFUSED = "the export is refused"


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
        compared_with: The model that it was compared with.
        num_adapted: Modules that an adapter changes; None for a whole model.
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
    compared_with: str = TRAINED_MODEL
    num_adapted: int | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """What training's chat template makes of a fixed question.

    Attributes:
        prompt_ids: Its tokens, with the generation prompt.
        end_id: The token that ends a response.
        template_sha256: Of the template's text.
        day: The day on which it was asked, as 2025-01-31, if the template tells it to the model; else empty.
    """

    prompt_ids: list[int]
    end_id: int
    template_sha256: str
    day: str = ""


def chat_of(template: ChatTemplate) -> Chat:
    """Returns what a chat template makes of the fixed question.

    Raises:
        LayoutError: The template ends the assistant's turn with no special token.
    """
    text = str(template.tokenizer.chat_template)
    return Chat(
        template.encode(MESSAGES, add_generation_prompt=True),
        end_of_turn_id(template),
        template.sha256,
        date.today().isoformat() if "strftime_now" in text else "",
    )


def end_of_turn_id(template: ChatTemplate) -> int:
    """Returns the token that training ends every response with.

    Raises:
        LayoutError: The template ends the assistant's turn with no special token.
    """
    conversation = [*MESSAGES, {"role": "assistant", "content": "The Elbe."}]
    ids = template.encode(conversation, add_generation_prompt=False)
    return ids[template.end_of_turn(ids)]


def prove(
    folder: Path,
    probe: Probe,
    chat: Chat,
    *,
    opens_in: str,
    rounded_to: str | None = None,
    base: Base | None = None,
    subject: str = REFUSED,
) -> Proof:
    """Returns the proof that the checkpoint in `folder` is the model that the probe is of.

    Args:
        folder: The checkpoint.
        probe: Tokens, and that model's logits.
        chat: What training's chat template makes of a question.
        opens_in: Format to compute in; `auto`: the checkpoint's own.
        rounded_to: Format that the weights were rounded to on the way.
        base: The base model of an adapter.
        subject: Beginning of the message when it is not.

    Raises:
        RunError: It is not, or stock transformers cannot open it.
    """
    opening = Opening(probe.input_ids, opens_in, str(folder.resolve()), end_id=chat.end_id, base=base)
    found, logits = open_checkpoint(folder, opening, subject)
    check_contents(found, subject)
    check_chat(found, chat, subject)
    tolerance = tolerance_of(found["computed_in"], probe.dtype, rounded_to=rounded_to)
    difference, num_same_token = check_logits(logits, probe, tolerance, subject)
    return Proof(
        difference=difference,
        tolerance=tolerance,
        num_positions=len(logits),
        num_same_token=num_same_token,
        num_parameters=found["num_parameters"],
        dtype=found["dtype"],
        device=found["device"],
        attention=found["attention"],
        end_of_turn_id=chat.end_id,
        num_new_tokens=len(found["response_ids"]),
        is_ended=found["response_ids"][-1] in found["end_ids"],
        response=found["response"],
        compared_with=probe.owner,
        num_adapted=found.get("num_changed"),
    )


def check_contents(found: Mapping[str, Any], subject: str) -> None:
    """Makes sure that all names and shapes are there, all numbers finite, and an adapter not zero.

    Raises:
        RunError: They are not.
    """
    for what, names in found["problems"].items():
        raise RunError(f"{subject}: {what.replace('_', ' ')}: {some(names)}")
    if found["not_finite"]:
        raise RunError(
            f"{subject}: weights that are not finite: {some(found['not_finite'])}; training broke "
            "down, lower train.learning_rate"
        )
    if found.get("num_changed") == 0:
        raise RunError(
            f"{subject}: the adapter is zero in every module: nothing was trained, or its weights were not saved"
        )


def check_chat(found: Mapping[str, Any], chat: Chat, subject: str) -> None:
    """Makes sure that a chat is rendered as in training, and that generation stops where a turn ends.

    Raises:
        RunError: It is not.
    """
    # A template that tells the model which day it is gives other tokens on another: its text is compared then.
    key = "template_sha256" if chat.day and chat.day != date.today().isoformat() else "prompt_ids"
    if found[key] != getattr(chat, key):
        raise RunError(f"{subject}: its chat template gives other tokens than training's")
    check_stop(found, chat.end_id, subject)


def check_stop(found: Mapping[str, Any], end_id: int, subject: str) -> None:
    """Makes sure that it generates, and stops at the token that ends a turn.

    Raises:
        RunError: It does not.
    """
    if end_id not in found["end_ids"] or not found["stops"]:
        raise RunError(
            f"{subject}: generation does not stop at token {end_id}, which ends a response in training; "
            "it belongs into eos_token_id of generation_config.json"
        )
    if not found["response_ids"]:
        raise RunError(f"{subject}: it generates nothing")


def check_logits(logits: Tensor, probe: Probe, tolerance: float, subject: str) -> tuple[float, int]:
    """Returns (relative difference from the probe's logits, positions with the same next token).

    Raises:
        RunError: They differ by more than the tolerance.
    """
    if probe.columns is not None and logits.shape[-1] > int(probe.columns.max()):
        logits = logits[:, probe.columns]
    if logits.shape != probe.logits.shape:
        raise RunError(
            f"{subject}: its logits have the shape {tuple(logits.shape)}, {probe.owner}'s {tuple(probe.logits.shape)}"
        )
    difference = relative_difference(logits, probe.logits)
    if not difference <= tolerance:  # NaN fails too
        raise RunError(
            f"{subject}: its logits differ from {probe.owner}'s by {difference:.1e} (relative), "
            f"more than {tolerance:.0e}: the weights are not those of "
            f"{'the end of training' if probe.owner == TRAINED_MODEL else probe.owner}"
        )
    return difference, int((logits.argmax(-1) == probe.logits.argmax(-1)).sum())


def some(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
