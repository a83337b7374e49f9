"""From verdicts to scores: strict and loose, per prompt, per instruction and per constraint type."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from misotune.evaluation.prompts import ConstrainedPrompt
from misotune.verifiers import verify


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """A prompt, its response and whether each constraint is met."""

    key: int | str
    prompt: str
    response: str
    instruction_id_list: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    def to_row(self) -> dict[str, Any]:
        """Returns the line of `samples.jsonl`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TypeScore:
    """How often one constraint type is met, as shares of 1."""

    num_instructions: int
    strict: float
    loose: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The four accuracies of IFEval, as shares of 1, under lm-eval's names.

    A prompt counts when all its constraints are met; an instruction is one constraint of one prompt.
    """

    prompt_level_strict_acc: float
    inst_level_strict_acc: float
    prompt_level_loose_acc: float
    inst_level_loose_acc: float


@dataclass(frozen=True, slots=True)
class Scores:
    """What `eval` finds out about one model (or file of responses) on one task.

    Attributes:
        task: The task's name.
        model: The model as it was named, or the file of responses.
        source: Where the prompts come from.
        prompts_sha256: Hash of the prompts' content.
        constraint_types: Scores per constraint type, by name.
        settings: How the responses were made.
        generation: What making them took: tokens, seconds, responses that were cut; empty for made elsewhere.
        notes: What a reader must know.
        folder: The result folder.
    """

    task: str
    model: str
    source: str
    prompts_sha256: str
    num_prompts: int
    num_instructions: int
    figures: Figures
    constraint_types: dict[str, TypeScore]
    settings: dict[str, Any]
    generation: dict[str, Any]
    seed: int
    versions: dict[str, str]
    date: str
    notes: tuple[str, ...] = ()
    folder: Path = field(default=Path(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `scores.json`."""
        content = {"format": 1, **asdict(self), "notes": list(self.notes)}
        del content["folder"]
        return content


def score_responses(prompts: Sequence[ConstrainedPrompt], responses: Sequence[str]) -> list[ScoredSample]:
    """Returns the verdicts on each response, in the order of the prompts."""
    samples: list[ScoredSample] = []
    for prompt, response in zip(prompts, responses, strict=True):
        found = verify(prompt, response)
        samples.append(
            ScoredSample(prompt.key, prompt.prompt, response, prompt.instruction_id_list, found.strict, found.loose)
        )
    return samples


def figures_of(samples: Sequence[ScoredSample]) -> Figures:
    """Returns the four accuracies.

    >>> types = ("punctuation:no_comma", "detectable_format:title")
    >>> sample = ScoredSample(1, "Name two fruits.", "Pears, *figs*", types, (True, False), (True, True))
    >>> list(asdict(figures_of([sample])).values())
    [0.0, 0.5, 1.0, 1.0]
    """
    return Figures(
        prompt_level_strict_acc=_share([all(s.strict) for s in samples]),
        inst_level_strict_acc=_share([met for s in samples for met in s.strict]),
        prompt_level_loose_acc=_share([all(s.loose) for s in samples]),
        inst_level_loose_acc=_share([met for s in samples for met in s.loose]),
    )


def scores_by_type(samples: Sequence[ScoredSample]) -> dict[str, TypeScore]:
    """Returns the scores of each constraint type that occurs, in alphabetical order."""
    verdicts: dict[str, list[tuple[bool, bool]]] = {}
    for sample in samples:
        for name, strict, loose in zip(sample.instruction_id_list, sample.strict, sample.loose, strict=True):
            verdicts.setdefault(name, []).append((strict, loose))
    return {
        name: TypeScore(len(met), _share([s for s, _ in met]), _share([lo for _, lo in met]))
        for name, met in sorted(verdicts.items())
    }


def _share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)
