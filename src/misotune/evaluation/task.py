"""What every task of `misotune eval` is made of: prompts, a way to score responses, and what comes of all of them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

Message = Mapping[str, str]
# Of a scoring that programs do, which nothing but prompts and responses decides.
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Prompt(Protocol):
    """One question of a task."""

    @property
    def key(self) -> int | str:
        """Unique within the task."""
        ...

    @property
    def prompt(self) -> str:
        """The last user turn; responses made elsewhere are matched by it or by the key."""
        ...

    @property
    def messages(self) -> Sequence[Message]:
        """The turns that the model answers, `role` and `content` each."""
        ...

    @property
    def where(self) -> str:
        """What to call the prompt in an error: file and line."""
        ...

    def content(self) -> Any:
        """Returns all that decides the score, as JSON can hold it; hashed with the scores."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, its response and what the task found in it.

    Attributes:
        key: The prompt's.
        prompt: The last user turn.
        response: The model's.
        found: Further fields of the line in `samples.jsonl`, by name.
    """

    key: int | str
    prompt: str
    response: str
    found: Mapping[str, Any]

    def to_row(self) -> dict[str, Any]:
        """Returns the line of `samples.jsonl`."""
        return {"key": self.key, "prompt": self.prompt, "response": self.response, **self.found}


@dataclass(frozen=True, slots=True)
class Summary:
    """What all samples come to.

    Attributes:
        figures: Shares of 1, by name; the first is the task's main one.
        counts: What was counted beside prompts, such as instructions.
        groups: Figures of parts, by kind of group and group: `{"constraint type": {"no_comma": {"number": 9, ...}}}`.
        notes: What a reader of the figures must know.
    """

    figures: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    groups: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict[str, Mapping[str, Mapping[str, float]]]
    )
    notes: tuple[str, ...] = ()


class Scoring(Protocol):
    """How a task scores."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Returns what decides the scores beside prompts and responses, such as the judge; kept with them."""
        ...

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[Sample]:
        """Returns what is found in each response, in the order of the prompts.

        Raises:
            MisotuneError: What scores, a server for one, fails.
        """
        ...

    def summarize(self, samples: Sequence[Sample]) -> Summary:
        """Returns the figures."""
        ...


@dataclass(frozen=True, slots=True)
class ResponseFields:
    """What the fields of a file of responses are called."""

    key: str = "key"
    prompt: str = "prompt"
    response: str = "response"


@dataclass(frozen=True, slots=True)
class Task:
    """A task that is ready to be run: its prompts are read and every response can be scored.

    Attributes:
        name: As the user calls it, and the name of its result folder.
        source: The file or hub id that the prompts come from.
        prompts: The prompts to run: the first `limit` of `all_prompts`.
        all_prompts: Every prompt of the set; responses made elsewhere are matched against these.
        max_new_tokens: The longest response, in tokens, unless asked otherwise.
        scoring: How responses are scored.
        notes: What a reader of the scores must know.
        draw: Draws samples of a model, by its name, into a folder; None: there is no picture.
        response_fields: Those of the response files that its authors published; None: there are no such files.
    """

    name: str
    source: str
    prompts: tuple[Any, ...]
    all_prompts: tuple[Any, ...]
    max_new_tokens: int
    scoring: Scoring
    notes: tuple[str, ...] = ()
    draw: Callable[[Sequence[Sample], str, Path], None] | None = None
    response_fields: ResponseFields | None = None


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Returns a hash of the prompts' content, the same for every file or source that holds them."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(prompt.content(), sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()


def mean(values: Sequence[float | bool]) -> float:
    """Returns the mean; of verdicts, the share that is true."""
    return sum(values) / len(values)
