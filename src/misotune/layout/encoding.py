"""One multi-input sample as token ids, with the response's tokens proved, never guessed.

The proof: rendered with the model's own template, every input's prompt is, token by token, a prefix of the same
prompt with its response, and what follows is the same for all inputs. Without it there is no training on the
row: the reason goes to the account.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from misotune.errors import LayoutError
from misotune.layout.template import ChatTemplate, Message
from misotune.samples import Sample

TokenIds = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as token ids: n inputs without generation prompt, and the output that begins with it.

    Attributes:
        id: The row's id.
        inputs: Token ids of each input.
        output: Generation prompt, response and end of turn (multi-turn rows: all turns from there on).
        is_trained: For each output token, whether its prediction is trained.
        num_opening_tokens: Tokens of the first input before its first user text: BOS, system prompt, header.
        can_chunk: Whether succ may cut its one input.
        roles: The part that each input plays; empty: not known.
        starts: Where in `output` each instruction's part begins: one, or several once instructions are joined
            to one causal text. The loss per instruction counts by it.
        sources: Where each instruction's row came from, one for each of `starts`; empty texts: not known.
    """

    id: str
    inputs: tuple[TokenIds, ...]
    output: TokenIds
    is_trained: NDArray[np.bool_]
    num_opening_tokens: int = 0
    can_chunk: bool = True
    roles: tuple[str, ...] = ()
    starts: tuple[int, ...] = (0,)
    sources: tuple[str, ...] = ("",)

    @property
    def num_input_tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(map(len, self.inputs))

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs and the output."""
        return self.num_input_tokens + len(self.output)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens whose prediction enters the loss."""
        return int(self.is_trained.sum())

    @property
    def num_trained_by_instruction(self) -> NDArray[np.int64]:
        """Trained tokens of each instruction's part; their sum is `num_trained_tokens`."""
        return np.add.reduceat(self.is_trained, self.starts, dtype=np.int64)

    @property
    def longest_pair(self) -> int:
        """Tokens of the longest input and the output."""
        return max(map(len, self.inputs)) + len(self.output)

    def cut(self, max_length: int) -> "EncodedSample | None":
        """Returns the sample with its output cut so that no pair is longer than `max_length` tokens.

        A chat ends with its last whole turn that fits, a single response where the room ends. None: nothing
        that is trained would be left.
        """
        room = max_length - max(map(len, self.inputs))
        flags = self.is_trained[: max(room, 0)]
        # The last trained token that an untrained one follows ends the last whole turn.
        turn_ends = np.flatnonzero(flags[:-1] & ~flags[1:]) if len(flags) else np.array([], dtype=np.int64)
        end = int(turn_ends[-1]) + 1 if len(turn_ends) else len(flags)
        if not flags[:end].any():
            return None
        starts = tuple(start for start in self.starts if start < end)
        return replace(
            self,
            output=self.output[:end],
            is_trained=self.is_trained[:end],
            starts=starts,
            sources=self.sources[: len(starts)],
        )


def encode_sample(sample: Sample, template: ChatTemplate) -> EncodedSample:
    """Returns the sample's token ids, with every trained token proved.

    Args:
        sample: The sample, its inputs already chosen for the mode.
        template: The model's chat template.

    Raises:
        LayoutError: The proof fails; the message says for what reason.
    """
    if sample.history_loss:
        if len(sample.inputs) > 1:
            raise LayoutError("a row with history_loss must have one input")
        return _encode_chat(sample, template)
    splits = [template.split_prompt(entry.messages) for entry in sample.inputs]
    openings = {tuple(opening) for _, opening in splits}
    if len(openings) > 1:
        raise LayoutError("the inputs do not share one generation prompt")
    responses = {
        tuple(_response_ids([*entry.messages, _assistant(sample.output)], [*prompt, *opening], template))
        for entry, (prompt, opening) in zip(sample.inputs, splits, strict=True)
    }
    if len(responses) > 1:
        raise LayoutError("the response's tokens differ from input to input")
    opening, response = openings.pop(), responses.pop()
    return EncodedSample(
        id=sample.id,
        inputs=tuple(_ids(prompt) for prompt, _ in splits),
        output=_ids([*opening, *response]),
        is_trained=np.array([False] * len(opening) + [True] * len(response)),
        num_opening_tokens=len(template.opening_ids(sample.inputs[0].messages)),
        can_chunk=len(sample.inputs) == 1,
        roles=tuple(entry.role for entry in sample.inputs),
        sources=(sample.source,),
    )


def _encode_chat(sample: Sample, template: ChatTemplate) -> EncodedSample:
    """A multi-turn row: one input up to the first assistant turn, then all turns, each response trained."""
    messages = [*sample.inputs[0].messages, _assistant(sample.output)]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    ids = template.encode(messages, add_generation_prompt=False)
    prompt, _ = template.split_prompt(messages[: turns[0]])
    is_trained = np.zeros(len(ids), dtype=bool)
    end = 0
    for turn in turns:
        start = len(template.encode(messages[:turn], add_generation_prompt=True))
        response = _response_ids(messages[: turn + 1], ids[:start], template)
        end = start + len(response)
        if ids[start:end] != response:
            raise LayoutError(f"the template renders turn {turn + 1} otherwise once a later turn follows")
        is_trained[start:end] = True
    first = len(prompt)
    return EncodedSample(
        id=sample.id,
        inputs=(_ids(ids[:first]),),
        output=_ids(ids[first:end]),
        is_trained=is_trained[first:end],
        can_chunk=False,
        roles=(sample.inputs[0].role,),
        sources=(sample.source,),
    )


def _response_ids(messages: Sequence[Message], prompt: Sequence[int], template: ChatTemplate) -> list[int]:
    """Returns the tokens of the last turn, up to its end-of-turn token, behind a proved prompt."""
    ids = template.encode(messages, add_generation_prompt=False)
    if ids[: len(prompt)] != list(prompt):
        raise LayoutError("the prompt's tokens are not the first tokens of prompt and response")
    response = ids[len(prompt) :]
    end = template.end_of_turn(response)
    if end == 0:
        raise LayoutError("the response has no tokens")
    return response[: end + 1]


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _ids(ids: Sequence[int]) -> TokenIds:
    return np.asarray(ids, dtype=np.int32)
