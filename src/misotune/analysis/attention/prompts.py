"""Prompts whose instruction and constraints are known to the character, and what verifies each constraint."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.analysis.rows import STARTER
from misotune.attention.spans import Span
from misotune.data.backtranslate.checks import is_met
from misotune.data.backtranslate.text import Text
from misotune.data.dataset import open_dataset
from misotune.data.dataset_writer import CHECKS_FILE
from misotune.data.files import BrokenRow, read_rows
from misotune.data.records import BadRowError, to_samples
from misotune.data.sources.columns import instruction_record
from misotune.data.sources.fields import RowContext, template_chooser
from misotune.data.starter import TRAIN_FILE
from misotune.errors import DataError
from misotune.samples import Sample, SampleInput

Check = tuple[str, Mapping[str, Any]]
"""A constraint's type and its verifier's arguments, as in IFEval."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a prompt.

    Attributes:
        text: As the row has it.
        span: Its characters in the last user turn.
        check: What verifies it; None: nothing is known to.
    """

    text: str
    span: Span
    check: Check | None = None

    def is_met(self, response: str, where: str) -> bool | None:
        """Returns the strict verdict on a response; None where the constraint cannot be verified here.

        Args:
            response: The whole response.
            where: What to call the row in an error.

        Raises:
            DataError: The check's type is unknown or its arguments are wrong.
        """
        if self.check is None:
            return None
        name, kwargs = self.check
        try:
            return is_met(name, kwargs, Text(response))
        except KeyError as error:
            raise DataError(f"{where}: unknown constraint type {name!r}; correct instruction_id_list") from error
        except LookupError:  # NLTK's Punkt data is not here
            return None
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise DataError(f"{where}: {name} cannot be verified with {dict(kwargs)}: {error}") from error


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A row's full prompt in parts.

    Attributes:
        sample: The row with its full input alone.
        instruction: Characters of the last user turn that hold the instruction; constraints among them are not of it.
        constraints: In the row's order.
    """

    sample: Sample
    instruction: Span
    constraints: tuple[Constraint, ...]

    @property
    def messages(self) -> tuple[Mapping[str, str], ...]:
        """The prompt as chat messages."""
        return self.sample.inputs[0].messages


def read_prompts(data: Path | None) -> Iterator[ParsedPrompt | None]:
    """Yields the rows of a dataset as prompts in parts; None for a row where a constraint is not found.

    Args:
        data: A prepared dataset, or JSON lines: rows of one, or with instruction, constraints and output. Lines may
            bring `instruction_id_list` and `kwargs`, one of each for every constraint, as the starter set's do; a
            dataset that was back-translated has them in checks.jsonl. None: the starter set.

    Raises:
        DataError: The data cannot be read, or a row is wrong.
    """
    path = data or TRAIN_FILE
    if path.is_file():
        yield from _of_file(path, STARTER if data is None else path.stem)
        return
    dataset = open_dataset(path)
    checks = _checks_of(path / CHECKS_FILE)
    for sample in dataset:
        yield parse_prompt(sample, checks.get(sample.id, ()))


def parse_prompt(sample: Sample, checks: Sequence[Check] = ()) -> ParsedPrompt | None:
    """Returns the row's full prompt in parts, or None: it has none, or not each constraint stands in it.

    A constraint is found by its words, whatever the white space and the case; each place counts once. The instruction
    is the base input's text, where it stands in one piece; else all of the turn.

    Args:
        sample: The row.
        checks: One for each constraint in their order, or none at all.

    Raises:
        DataError: The numbers of checks and constraints differ.
    """
    full = next((x for x in sample.inputs if x.role in ("full", "chunked")), None)
    texts = [x.constraint for x in sample.inputs if x.constraint]
    if checks and len(checks) != len(texts):
        raise DataError(
            f"row {sample.id}: {len(checks)} checks for {len(texts)} constraints; give one for each or none"
        )
    if full is None:
        return None
    turn = full.messages[-1]["content"]
    instruction = _instruction_of(turn, sample.inputs)
    constraints: list[Constraint] = []
    for i, text in enumerate(texts):
        span = _find(turn, text, [x.span for x in constraints], instruction)
        if span is None:
            return None
        constraints.append(Constraint(text, span, checks[i] if checks else None))
    # Earlier assistant turns are part of the prompt here: the last response alone is looked at.
    alone = Sample(sample.id, sample.source, sample.domain, (SampleInput("full", full.messages),), sample.output)
    return ParsedPrompt(alone, instruction, tuple(constraints))


def _instruction_of(turn: str, inputs: Sequence[SampleInput]) -> Span:
    base = next((x.messages[-1]["content"].strip() for x in inputs if x.role == "base"), "")
    start = turn.find(base)
    return Span(start, start + len(base)) if base and start >= 0 else Span(0, len(turn))


def _find(turn: str, text: str, taken: Sequence[Span], instruction: Span) -> Span | None:
    """Returns where a constraint stands: if it can be, outside the instruction and behind those before it."""
    pattern = r"\s+".join(map(re.escape, text.split()))
    found = [Span(*match.span()) for match in re.finditer(pattern, turn, re.IGNORECASE)]
    free = [x for x in found if not any(_overlap(x, other) for other in taken)]
    after = max((x.stop for x in taken), default=0)
    return min(free, key=lambda x: (_overlap(x, instruction), x.start < after, x.start), default=None)


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.stop and other.start < one.stop


def _of_file(path: Path, name: str) -> Iterator[ParsedPrompt | None]:
    context = RowContext(name, "", template_chooser("mixed", seed=0))
    for number, row in enumerate(read_rows(path), start=1):
        if isinstance(row, BrokenRow):
            raise DataError(f"{row.where}: {row.reason}")
        if "inputs" in row.values:
            sample = Sample.from_row(row.values, row.where)
        else:
            try:
                record = instruction_record({"id": f"{name}-{number}", **row.values}, context)
            except BadRowError as error:
                raise DataError(f"{row.where}: {error}; or prepare the data: misotune prepare {path}") from error
            (sample,) = to_samples(record, "para")
        yield parse_prompt(sample, _checks_in(row.values, row.where))


def _checks_in(row: Mapping[str, Any], where: str) -> list[Check]:
    names, kwargs = row.get("instruction_id_list") or [], row.get("kwargs") or []
    if not isinstance(names, list) or not isinstance(kwargs, list) or len(names) != len(kwargs):
        raise DataError(f"{where}: 'instruction_id_list' and 'kwargs' must be lists of one length")
    if not all(isinstance(x, str) for x in names) or not all(isinstance(x, Mapping) for x in kwargs):
        raise DataError(f"{where}: 'instruction_id_list' must hold constraint types, 'kwargs' their arguments")
    return [
        (name, {k: v for k, v in entry.items() if v is not None}) for name, entry in zip(names, kwargs, strict=True)
    ]


def _checks_of(path: Path) -> dict[str, list[Check]]:
    if not path.is_file():
        return {}
    found: dict[str, list[Check]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found[str(row["id"])] = _checks_in(row, f"{path}:{number}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: broken; prepare the dataset again") from error
    return found
