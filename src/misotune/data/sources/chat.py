"""Chats: `conversations` of ShareGPT or `messages`, as one-input rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from misotune.data.records import BadRowError, Message, Record, brief
from misotune.data.sources.constraints import with_constraints
from misotune.data.sources.fields import RowContext, names_of, row_domain, row_id
from misotune.data.sources.thinking import ONE_INPUT, RULES, Think, place, split_answer
from misotune.data.sources.turns import TOOLS_AS_TEXT, Turn, merged_tool_results, read_turn, tools_text

CHAT_COLUMNS = ("messages", "conversations", "conversation")
OPENING_CUT = "opening assistant turns cut"
ENDING_CUT = "last user turns without an answer cut"
EARLIER_THINKING_CUT = "thinking of earlier turns cut"


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat in order: perhaps a system message, then user and assistant in turn; the assistant ends it.

    Attributes:
        history: All messages before the last pair.
        user: The last question.
        output: Its answer.
        has_thinking: The thinking of the last answer stands in `user` or `output`, or was dropped.
        notes: What was cut or rewritten.
    """

    history: tuple[Message, ...]
    user: str
    output: str
    has_thinking: bool = False
    notes: tuple[str, ...] = ()


def has_chat(row: Mapping[str, Any]) -> bool:
    """True when a row holds a chat."""
    return any(row.get(key) is not None for key in CHAT_COLUMNS)


def chat_record(row: Mapping[str, Any], context: RowContext, *, think: Think = "input", tagged: bool = False) -> Record:
    """Returns the record of a chat: one input, and the loss on every assistant turn when there are several.

    A list of `constraints` beside the chat (as in Tulu's and Conifer's data) belongs to the last user turn.

    Args:
        row: Holds `messages` or `conversations`, and perhaps `tools` and `constraints`.
        context: What the source knows besides.
        think: Where the thinking of the assistant goes, where the row keeps it apart.
        tagged: `<think>` in an answer's text is thinking too.
    """
    chat = read_chat(row, think, tagged)
    record = Record(
        id=row_id(row, context),
        source=context.source,
        domain=row_domain(row, "chat"),
        history=chat.history,
        instruction=chat.user,
        constraints=(),
        output=chat.output,
        history_loss=any(message["role"] == "assistant" for message in chat.history),
        rule=RULES[think] if chat.has_thinking else "chat",
        one_input=ONE_INPUT[think] if chat.has_thinking else "chat",
        notes=chat.notes,
    )
    return record if chat.has_thinking else with_constraints(record, row, context)


def read_chat(row: Mapping[str, Any], think: Think = "input", tagged: bool = False) -> Chat:
    """Returns the chat of a row with `messages` or `conversations`.

    Raises:
        BadRowError: There is no chat in the row, a turn is empty or unknown, or the turns are out of order.
    """
    turns = _turns_of(row)
    notes = [TOOLS_AS_TEXT] if any(turn.is_tool for turn in turns) else []
    system = turns[:1] if turns and turns[0].role == "system" else []
    turns, cuts = _trimmed(turns[len(system) :])
    if tagged:
        turns = [_untagged(turn) for turn in turns]
    _check_order(turns)
    if think != "output" and any(turn.thinking for turn in turns[:-1]):
        cuts.append(EARLIER_THINKING_CUT)
    question, answer = turns[-2:]
    user, output = place(question.text, answer.thinking, answer.text, think)
    earlier = [_earlier(turn, think) for turn in turns[:-2]]
    history = (*_system(system, row), *earlier)
    return Chat(history, user, output, bool(answer.thinking), tuple(notes + cuts))


def _turns_of(row: Mapping[str, Any]) -> list[Turn]:
    key = next((key for key in CHAT_COLUMNS if row.get(key) is not None), None)
    if key is None:
        raise BadRowError(f"no column 'messages' or 'conversations' (the row has {names_of(row)})")
    turns = row[key]
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise BadRowError(f"{key!r} must be a list of turns, it is {brief(turns)}")
    return merged_tool_results([read_turn(turn) for turn in turns])


def _trimmed(turns: list[Turn]) -> tuple[list[Turn], list[str]]:
    """Cuts a chat that was torn out of a longer one to whole question-answer pairs."""
    notes: list[str] = []
    start = next((i for i, turn in enumerate(turns) if turn.role != "assistant"), len(turns))
    end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role != "user"), 0)
    if start >= end:
        raise BadRowError("no user turn with an answer")
    if start > 0:
        notes.append(OPENING_CUT)
    if end < len(turns):
        notes.append(ENDING_CUT)
    return turns[start:end], notes


def _check_order(turns: Sequence[Turn]) -> None:
    for i, turn in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if turn.role != expected:
            raise BadRowError(f"turn {i + 1} of the chat is the {turn.role}'s, expected the {expected}'s")
        if not turn.text.strip():
            raise BadRowError(f"turn {i + 1} of the chat, the {turn.role}'s, is empty")


def _untagged(turn: Turn) -> Turn:
    if turn.role != "assistant" or turn.thinking:
        return turn
    thinking, text = split_answer(turn.text)
    return replace(turn, text=text, thinking=thinking)


def _earlier(turn: Turn, think: Think) -> Message:
    """A turn of the history: with its thinking where answers keep theirs, without where they do not."""
    text = place("", turn.thinking, turn.text, "output" if think == "output" else "drop")[1]
    return {"role": turn.role, "content": text}


def _system(system: Sequence[Turn], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system message, with the row's tools where it has some."""
    texts = [turn.text for turn in system] + [tools_text(row.get("tools"))]
    text = "\n\n".join(text for text in texts if text.strip())
    return ({"role": "system", "content": text},) if text else ()
