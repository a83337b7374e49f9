"""IFEval-Flatten: every prompt with n constraints as n prompts with one constraint each, 834 in all.

The MISO paper (its evaluation section) edits IFEval's prompts by hand and never released the result; these are edits of
our own, by hand too. What ships is not IFEval's text: `ifeval_flatten.jsonl` names, for each prompt and constraint, the
spans of characters to delete and the words that join what is left, with the SHA-256 of the prompt and of the result.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from misotune.errors import DataError
from misotune.evaluation.constrained import ConstrainedPrompt

# [start, end, text]: the characters from start to end are replaced by text.
Edits = Sequence[tuple[int, int, str]]


def flatten(prompts: Sequence[ConstrainedPrompt]) -> tuple[ConstrainedPrompt, ...]:
    """Returns one prompt for each constraint of IFEval's prompts, keyed `KEY-INDEX`, in their order.

    Raises:
        DataError: A prompt is not IFEval's, or not as it was published; names the row.
    """
    return tuple(flat for prompt in prompts for flat in _flatten_one(prompt))


def special_cases(prompts: Sequence[ConstrainedPrompt]) -> dict[str, str]:
    """Returns, by the keys of flattened prompts, how constraints that depend on one another were handled.

    Mismatches between IFEval's prompts and arguments, which stay as they are, are among them.
    """
    edited = _edits_of_all()
    return {
        f"{prompt.key}-{index}": entry["note"]
        for prompt in prompts
        for index, entry in enumerate(edited[str(prompt.key)]["constraints"])
        if "note" in entry
    }


def apply_edits(text: str, edits: Edits) -> str:
    """Returns a text after its edits.

    >>> apply_edits("Write a 300+ word poem. Use no commas.", [(8, 18, ""), (23, 38, "")])
    'Write a poem.'
    """
    parts: list[str] = []
    at = 0
    for start, end, words in edits:
        parts += [text[at:start], words]
        at = end
    return "".join([*parts, text[at:]])


def sha256(text: str) -> str:
    """Returns a text's SHA-256, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _flatten_one(prompt: ConstrainedPrompt) -> Iterator[ConstrainedPrompt]:
    entry = _edits_of_all().get(str(prompt.key))
    if entry is None:
        raise DataError(
            f"{prompt.where}: IFEval has no key {prompt.key!r}; IFEval-Flatten is made of IFEval's prompts alone"
        )
    if sha256(prompt.prompt) != entry["sha256"] or list(prompt.instruction_id_list) != entry["instruction_id_list"]:
        raise DataError(
            f"{prompt.where}: key {prompt.key} is not worded as in IFEval's input_data.jsonl, which the edits were "
            "made for; give that file with --data FILE, or leave out --data"
        )
    for index, (name, kwargs, edited) in enumerate(
        zip(prompt.instruction_id_list, prompt.kwargs, entry["constraints"], strict=True)
    ):
        text = apply_edits(prompt.prompt, edited["edits"])
        assert sha256(text) == edited["sha256"], f"the edits of key {prompt.key}-{index} are broken"
        yield ConstrainedPrompt(
            key=f"{prompt.key}-{index}",
            prompt=text,
            instruction_id_list=(name,),
            kwargs=(_edited_kwargs(kwargs, edited.get("kwargs", {})),),
            where=f"{prompt.where}, constraint {index}",
        )


def _edited_kwargs(kwargs: Mapping[str, Any], edits: Mapping[str, Edits]) -> dict[str, Any]:
    """Returns a verifier's arguments; a request to be repeated has lost the other constraints, as the prompt has."""
    return {**kwargs, **{name: apply_edits(kwargs[name], edited) for name, edited in edits.items()}}


@cache
def _edits_of_all() -> dict[str, Any]:
    text = (files("misotune.evaluation") / "ifeval_flatten.jsonl").read_text(encoding="utf-8")
    return {str(entry["key"]): entry for entry in map(json.loads, text.splitlines())}
