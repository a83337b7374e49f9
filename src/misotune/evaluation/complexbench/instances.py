"""ComplexBench's data file: instructions, each with the questions that score a response to it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from misotune.errors import DataError
from misotune.evaluation.complexbench.rules import Rule, parse_rule

Language = Literal["zh", "en"]
_SUFFIX: Mapping[Language, str] = {"zh": "", "en": "_en"}


@dataclass(frozen=True, slots=True)
class ScoringQuestion:
    """One question about a response, to be answered with yes or no.

    Attributes:
        text: The question.
        rule: What decides it; None: the judge does.
        constraint_dimensions: What it is about, such as `Length`.
        composition_types: `And`, `Chain` or `Selection`, where it is about one.
        depends_on: Places of the questions without whose yes this one's counts for nothing.
    """

    text: str
    rule: Rule | None
    constraint_dimensions: tuple[str, ...]
    composition_types: tuple[str, ...]
    depends_on: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One instruction of ComplexBench.

    Attributes:
        key: Its `main_id`.
        prompt: The instruction.
        questions: What its responses are asked about.
        category: How it is composed, and how deep: `Selection_2`.
        task_type: Such as `Creative Writing`.
        composition_types: All of its compositions.
        group: Instructions of one group differ in what their selection selects; None: it selects nothing.
        where: What to call the row in an error: file and row.
    """

    key: int | str
    prompt: str
    questions: tuple[ScoringQuestion, ...]
    category: str
    task_type: str
    composition_types: tuple[str, ...]
    group: str | None
    where: str

    @property
    def messages(self) -> tuple[Mapping[str, str], ...]:
        """One user turn."""
        return ({"role": "user", "content": self.prompt},)

    def content(self) -> Any:
        """Returns all that decides the figures, the judge's answers apart."""
        questions = [
            [q.text, q.rule and q.rule.text, [*q.constraint_dimensions], [*q.composition_types], [*q.depends_on]]
            for q in self.questions
        ]
        compositions = list(self.composition_types)
        return [self.key, self.prompt, questions, self.category, self.task_type, compositions, self.group]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str, language: Language) -> "Instance":
        """Returns the instruction of a row of the data file.

        Raises:
            DataError: A field is missing or wrong; names row, question and field.
        """
        _need(row, ("main_id", "category", "task_types", "composition_types", "scoring_questions"), where)
        key = row["main_id"]
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise DataError(f"{where}: 'main_id' must be a number or a text, got {key!r:.80}")
        where = f"{where} (main_id {key})"
        rows = row["scoring_questions"]
        if not isinstance(rows, list) or not rows or not all(isinstance(entry, Mapping) for entry in rows):
            raise DataError(f"{where}: 'scoring_questions' must be a list of objects that is not empty")
        return cls(
            key=key,
            prompt=_text(row, "instruction" + _SUFFIX[language], where),
            questions=tuple(_question(rows, place, where, language) for place in range(len(rows))),
            category=_text(row, "category", where),
            task_type=_text(row, "task_types", where),
            composition_types=_names(row, "composition_types", where),
            group=None if row.get("group") is None else str(row["group"]),
            where=where,
        )


def read_instances(path: Path, language: Language) -> tuple[Instance, ...]:
    """Returns the instructions of a data file such as `data_final.json`, or of a file with a single one.

    Raises:
        DataError: The file cannot be read, or a row is wrong.
    """
    instances: dict[str, Instance] = {}
    for number, row in enumerate(_rows(path), start=1):
        where = f"{path} row {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: must be a JSON object, got {row!r:.60}")
        instance = Instance.from_row(row, where, language)
        first = instances.setdefault(str(instance.key), instance)
        if first is not instance:
            raise DataError(f"{where}: main_id {instance.key} stands already at {first.where}")
    return tuple(instances.values())


def _rows(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not JSON: {error.msg}; a list of objects is expected") from error
    rows = [content] if isinstance(content, Mapping) else content
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: must hold a list of objects, such as ComplexBench's data_final.json")
    return rows


def _question(rows: Sequence[Mapping[str, Any]], place: int, where: str, language: Language) -> ScoringQuestion:
    row = rows[place]
    where = f"{where}, question {place}"
    _need(row, ("rule", "constraint_dimensions", "composition_types", "dep"), where)
    # Dependencies name places; a number that is not the place would make them ambiguous.
    if row.get("point_id", place) != place:
        raise DataError(f"{where}: its 'point_id' is {row['point_id']!r}; questions are numbered from 0 in their order")
    depends_on = row["dep"]
    if not isinstance(depends_on, list):
        raise DataError(f"{where}: 'dep' must be a list of question numbers, got {depends_on!r:.60}")
    for number in depends_on:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(rows):
            raise DataError(f"{where}: 'dep' names question {number!r}, there are 0 to {len(rows) - 1}")
    return ScoringQuestion(
        text=_text(row, "question" + _SUFFIX[language], where),
        rule=_rule(row["rule"], where),
        constraint_dimensions=_names(row, "constraint_dimensions", where),
        composition_types=_names(row, "composition_types", where),
        depends_on=tuple(depends_on),
    )


def _rule(text: Any, where: str) -> Rule | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise DataError(f"{where}: 'rule' must be a text or null, got {text!r:.60}")
    try:
        return parse_rule(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct it, or put null for the judge to decide") from error


def _need(row: Mapping[str, Any], fields: Iterable[str], where: str) -> None:
    for field in fields:
        if field not in row:
            raise DataError(f"{where}: no field {field!r}; ComplexBench's data_final.json has it in every row")


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    _need(row, (field,), where)
    if not isinstance(row[field], str) or not row[field].strip():
        raise DataError(f"{where}: {field!r} must be a text that is not empty")
    return row[field]


def _names(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    names = row[field]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {field!r} must be a list of texts, got {names!r:.60}")
    return tuple(names)
