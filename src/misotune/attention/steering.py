"""Steering: attention to all but the user's tokens, scaled and renormalised ("On the Loss of Context-awareness").

Source: arXiv 2411.02688; the method page, section 10. In a layer, softmax weights w_s become alpha^(1 - u_s) w_s over
their sum, u_s = 1 for a user token. That is log(alpha) added to the scores of all other keys in front of the softmax
(behind a softcap, which is part of the score), so that

    causal masks stay as they are: a key with weight 0 keeps it
    each layer starts from its own scores: alpha does not compound over layers
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from misotune.errors import UnsupportedModelError, UsageError

# Flash attention on CUDA takes head sizes that this divides.
_HEAD_SIZES = 8
# More layers or heads than any model has: a range is written out before the model is known.
_MOST = 9_999
# The user's tokens of rows of different lengths are one tensor.
_PADDING = False


@dataclass(frozen=True, slots=True)
class Steering:
    """How attention is steered.

    Attributes:
        alpha: The factor of attention to tokens that are not the user's, above 0 and at most 1; 1 leaves the model as
            it is.
        layers: Counted from 1, ascending; None: all.
        heads: Query heads of each of these layers, counted from 1, ascending; None: all.

    Raises:
        UsageError: A value of these is not.
    """

    alpha: float
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise UsageError(f"--steer {self.alpha:g}: a number above 0 and at most 1, such as 0.95")
        for what, numbers in (("layers", self.layers), ("heads", self.heads)):
            if numbers is not None and (not numbers or min(numbers) < 1 or list(numbers) != sorted(set(numbers))):
                raise UsageError(f"--steer-{what}: numbers from 1 on, ascending, got {numbers}")

    @property
    def is_neutral(self) -> bool:
        """Whether the model stays as it is."""
        return self.alpha == 1

    @property
    def label(self) -> str:
        """What results are told apart by, as the name of a folder.

        >>> Steering(0.95).label, Steering(0.5, layers=(1, 4, 5, 6)).label
        ('steer-0.95', 'steer-0.5-layers-1,4-6')
        """
        parts = [f"steer-{self.alpha!r}"]
        for what, numbers in (("layers", self.layers), ("heads", self.heads)):
            if numbers is not None:
                parts.append(f"{what}-{_as_ranges(numbers)}")
        return "-".join(parts)

    @property
    def settings(self) -> dict[str, Any]:
        """What is kept with responses and scores."""
        found: dict[str, Any] = {"steer": self.alpha}
        if self.layers is not None:
            found["steer_layers"] = _as_ranges(self.layers)
        if self.heads is not None:
            found["steer_heads"] = _as_ranges(self.heads)
        return found

    @property
    def words(self) -> str:
        """What it does, for a person.

        >>> Steering(0.95, heads=(1, 2)).words
        "attention to tokens other than the user's scaled by 0.95, heads 1-2"
        """
        told = [f"attention to tokens other than the user's scaled by {self.alpha:g}"]
        for what, numbers in (("layers", self.layers), ("heads", self.heads)):
            if numbers is not None:
                told.append(f"{what} {_as_ranges(numbers)}")
        return ", ".join(told)

    def reaches(self, layer_idx: int) -> bool:
        """Returns whether a layer is steered, by transformers' index, from 0."""
        return not self.is_neutral and (self.layers is None or layer_idx + 1 in self.layers)

    def reaches_heads(self, num_heads: int, device: torch.device) -> Bool[Tensor, "H"]:
        """Returns which query heads of a steered layer are steered."""
        if self.heads is None:
            return torch.ones(num_heads, dtype=torch.bool, device=device)
        found = torch.zeros(num_heads, dtype=torch.bool, device=device)
        found[[head - 1 for head in self.heads]] = True
        return found


@dataclass(frozen=True, slots=True, eq=False)
class SteerArguments:
    """What a forward call tells the attention of every layer.

    Attributes:
        steering: How attention is steered.
        log_factors: What is added to the scores of all keys that are known, in float32: log(alpha), or 0 for a user
            token. A layer that keeps the last keys alone takes the last of these.
    """

    steering: Steering
    log_factors: Float[Tensor, "B S"]

    @classmethod
    def of(cls, steering: Steering, is_user: Bool[Tensor, "B S"]) -> "SteerArguments":
        """Returns what makes a model look less at tokens that are not the user's."""
        return cls(steering, (~is_user).float() * math.log(steering.alpha))


@dataclass(frozen=True, slots=True)
class SteeredPrompts:
    """The prompts of a batch that is steered.

    Attributes:
        steering: How attention is steered.
        user_tokens: Of each prompt, which of its tokens are the user's text.
    """

    steering: Steering
    user_tokens: Sequence[Sequence[bool]]

    def is_user(self, device: torch.device) -> Bool[Tensor, "B S"]:
        """Returns the user's tokens of prompts that are padded on the left."""
        width = max(map(len, self.user_tokens))
        rows = [[_PADDING] * (width - len(flags)) + list(flags) for flags in self.user_tokens]
        return torch.tensor(rows, device=device)


def grown(is_user: Bool[Tensor, "B S"], num_columns: int, num_new: int) -> Bool[Tensor, "B C"]:
    """Returns the user's tokens of a batch's last columns after some tokens were generated, which are not the user's.

    >>> grown(torch.tensor([[True, True, False]]), num_columns=4, num_new=2).tolist()
    [[True, False, False, False]]

    Args:
        is_user: Those of the prompts, padded on the left.
        num_columns: C, the columns that are asked for.
        num_new: Tokens behind each prompt; -1: the prompts without their last tokens.
    """
    whole = functional.pad(is_user, (max(0, num_columns - num_new - is_user.shape[1]), num_new), value=_PADDING)
    return whole[:, whole.shape[1] - num_columns :]


def add_columns(
    q: Float[Tensor, "T H D"], k: Float[Tensor, "S K D"], steer: SteerArguments, scale: float
) -> tuple[Float[Tensor, "T H E"], Float[Tensor, "S K E"]]:
    """Returns queries and keys of one row whose scores are those of q and k with `log_factors` added.

    Two more columns do it, for any kernel: 1 in the queries of the heads that are steered, log(alpha) / scale in the
    keys. The second column holds what the first loses in the keys' type, so that bfloat16 steers by alpha too.
    """
    num_columns = q.shape[-1] + 2
    padding = -num_columns % _HEAD_SIZES
    ones = steer.steering.reaches_heads(q.shape[1], q.device).to(q.dtype)[None, :, None].expand(len(q), -1, 2)
    wanted = steer.log_factors[0, :, None] / scale
    high = wanted.to(k.dtype)
    low = (wanted - high.to(wanted.dtype)).to(k.dtype)
    columns = torch.cat([high, low], dim=-1)[:, None].expand(-1, k.shape[1], -1)
    steered = torch.cat([q, ones], dim=-1), torch.cat([k, columns], dim=-1)
    return functional.pad(steered[0], (0, padding)), functional.pad(steered[1], (0, padding))


def check_numbers(steering: Steering, num_layers: int, num_heads: int) -> None:
    """Makes sure that a model has the layers and heads.

    Raises:
        UsageError: It has not.
    """
    for what, numbers, number in (("layers", steering.layers, num_layers), ("heads", steering.heads, num_heads)):
        if numbers is not None and numbers[-1] > number:
            raise UsageError(f"--steer-{what} {_as_ranges(numbers)}: the model has {what} 1 to {number}")


def refuse_softcap(softcap: float | None) -> None:
    """Refuses a layer whose scores are capped behind what `add_columns` adds to them.

    Raises:
        UnsupportedModelError: It has a softcap.
    """
    if softcap is not None:
        raise UnsupportedModelError(
            f"a model that caps its scores (softcap {softcap:g}) cannot be steered while it reads several inputs; "
            "leave out --steer, or use misotune eval, which steers it"
        )


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Returns the numbers that a text names, ascending.

    >>> parse_numbers("1,4-6", "--steer-layers")
    (1, 4, 5, 6)

    Args:
        text: Numbers from 1 on and ranges of them, with commas between them.
        option: What it was given with, for the error.

    Raises:
        UsageError: It is something else.
    """
    try:
        parts = [part.partition("-") for part in text.split(",")]
        ranges = [(int(first), int(last if dash else first)) for first, dash, last in parts]
    except ValueError:
        ranges = []
    if not ranges or not all(1 <= first <= last <= _MOST for first, last in ranges):
        raise UsageError(f"{option} {text}: numbers from 1 to {_MOST:,}, such as 20, 8,20 or 8-20")
    return tuple(sorted({number for first, last in ranges for number in range(first, last + 1)}))


def _as_ranges(numbers: Sequence[int]) -> str:
    """Returns ascending numbers in the form of `parse_numbers`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
