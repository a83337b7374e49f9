"""What `eval` finds out about one model on one task, as `scores.json` holds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one model, or of a file of responses, on one task.

    Attributes:
        task: The task's name.
        model: The model as it was named, or the file of responses.
        source: Where the prompts come from.
        prompts_sha256: Hash of the prompts' content.
        num_prompts: Prompts scored.
        counts: What was counted beside prompts.
        figures: Shares of 1, by name; the first is the task's main one.
        groups: Figures of parts, by kind of group and group.
        settings: How the responses were made.
        generation: What making them took: tokens, seconds, responses that were cut; empty for made elsewhere.
        seed: Of all that is drawn while scoring.
        versions: Of the packages.
        date: When, in UTC.
        notes: What a reader must know.
        folder: The result folder.
    """

    task: str
    model: str
    source: str
    prompts_sha256: str
    num_prompts: int
    counts: Mapping[str, int]
    figures: Mapping[str, float]
    groups: Mapping[str, Mapping[str, Mapping[str, float]]]
    settings: dict[str, Any]
    generation: dict[str, Any]
    seed: int
    versions: dict[str, str]
    date: str
    notes: tuple[str, ...] = ()
    folder: Path = field(default=Path(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `scores.json`."""
        content = {"format": FORMAT, **asdict(self), "notes": list(self.notes)}
        del content["folder"]
        return content
