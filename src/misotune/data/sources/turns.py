"""One turn of a chat, in the forms that data sets have: text, text in parts, thinking, tool calls and their results.

Tools are written as text in the form that open models are trained on (`<tool_call>`, `<tool_response>`, `<tools>`),
so that a row stays a list of plain messages.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.data.records import BadRowError, brief

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "tool call",
}
TOOLS_AS_TEXT = "tool calls written as text"

_TOOLS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn as plain text, with its thinking apart.

    Attributes:
        role: system, user or assistant; the result of a tool is the user's.
        text: What is said.
        thinking: The reasoning before an assistant's text; empty without.
        is_tool: The turn calls a tool, or is the result of a call.
    """

    role: str
    text: str
    thinking: str = ""
    is_tool: bool = False


def read_turn(turn: Any) -> Turn:
    """Returns a turn of `messages` (role, content) or `conversations` (from, value).

    Raises:
        BadRowError: It has no text, a part that is not text, or an unknown role.
    """
    if not isinstance(turn, Mapping):
        raise BadRowError(f"a turn must have a role and a text, it is {brief(turn)}")
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadRowError(f"unknown role {brief(name)} (known: {', '.join(ROLES)})")
    text, thinking, calls = _content(turn)
    if role == "tool call":
        role, text, calls = "assistant", "", [text, *calls]
    if role == "tool":
        return Turn("user", f"<tool_response>\n{text}\n</tool_response>", is_tool=True)
    blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    whole = "\n".join(([text] if text.strip() else []) + blocks) if blocks else text
    return Turn(role, whole, thinking, is_tool=bool(blocks))


def merged_tool_results(turns: Sequence[Turn]) -> list[Turn]:
    """Returns the turns with results of tools that follow one another as one turn, as chat templates show them."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is not None and last.role == turn.role and last.is_tool and turn.is_tool:
            merged[-1] = Turn(turn.role, f"{last.text}\n{turn.text}", last.thinking or turn.thinking, is_tool=True)
        else:
            merged.append(turn)
    return merged


def tools_text(tools: Any) -> str:
    """Returns the part of a system message that lists a row's tools; empty without any.

    Args:
        tools: A list of function signatures, or its JSON.

    Raises:
        BadRowError: It is something else.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BadRowError(f"'tools' is not JSON ({error})") from error
    if not tools:
        return ""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise BadRowError(f"'tools' must be a list, it is {brief(tools)}")
    return _TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def _content(turn: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """Text, thinking and tool calls of a turn."""
    content = turn.get("content", turn.get("value"))
    calls = [_call(call) for call in turn.get("tool_calls") or ()]
    thinking = turn.get("reasoning_content") or turn.get("reasoning") or ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        return _joined_parts(content, thinking, calls)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise BadRowError(f"the text of a turn must be a string, it is {brief(content)}")
    return content, thinking, calls


def _joined_parts(parts: Sequence[Any], thinking: str, calls: list[str]) -> tuple[str, str, list[str]]:
    """The text of a turn in parts (`[{"type": "text", "text": ...}]`); images and the like are refused."""
    found: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": list(calls)}
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind not in found or not isinstance(text, str):
            raise BadRowError(f"a turn has a part that is not text: {brief(part)}")
        found[kind].append(text)
    return "".join(found["text"]), thinking or "\n".join(found["reasoning"]), found["tool_call"]


def _call(call: Any) -> str:
    """A tool call of OpenAI's form as JSON with name and arguments."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise BadRowError(f"a tool call needs a name, it is {brief(call)}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # a model's own broken call is shown as it was
            arguments = json.loads(arguments)
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
