"""Questions about a text, out of the layouts that SQuAD, QuAC and DROP come in."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.data.hub import read_hub_rows
from misotune.errors import DataError
from misotune.evaluation.constrained import read_jsonl

# QuAC ends its texts with this word, and takes it as the answer where there is none.
_CANNOT_ANSWER = "CANNOTANSWER"
_PLAIN_LAYOUT = "JSON lines of id, context, question, answer"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a text.

    Attributes:
        key: Its id in the set.
        context: The text, as it stands in the prompt.
        question: What is asked.
        answers: Every answer that counts; none: the text does not answer it.
        kind: What the answer is, DROP's `number`, `date` or `span`; None where the set has no kinds.
        where: File and place.
    """

    key: str
    context: str
    question: str
    answers: tuple[str, ...]
    kind: str | None
    where: str


def read_questions(path: Path, layout: str) -> Iterator[Question]:
    """Yields the questions of a file: `.json` in the set's own layout, `.jsonl` in the hub's or a plain one; `.gz` too.

    Args:
        path: The file.
        layout: `squad`, `quac` or `drop`.

    Raises:
        DataError: The file or an entry of it has another layout; names file and place.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for where, row in read_jsonl(path):
            is_plain = isinstance(row.get("answer"), (str, int, float))
            yield _plain_row(row, where) if is_plain else _ROWS[layout](row, where)
    elif path.name.endswith((".json", ".json.gz")):
        yield from _FILES[layout](_read_json(path), path)
    else:
        raise DataError(f"{path}: {layout} is read from .json or .jsonl, .gz too")


def read_hub_questions(hub_id: str, layout: str, task: str) -> Iterator[Question]:
    """Yields the questions of a hub data set's validation split.

    Raises:
        RunError: The hub cannot be reached; names the way with a file.
    """
    for row in read_hub_rows(hub_id, "validation", f"misotune eval {task} --data FILE"):
        yield _ROWS[layout](row.values, row.where)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            data = json.load(file)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not isinstance(data, Mapping):
        raise DataError(f"{path}: must hold one JSON object; lists of rows are read as {_PLAIN_LAYOUT}")
    return data


def _squad_file(data: Mapping[str, Any], path: Path) -> Iterator[Question]:
    for where_article, article in _entries(data, "data", f"{path} "):
        for where_paragraph, paragraph in _entries(article, "paragraphs", f"{where_article}."):
            for where, entry in _entries(paragraph, "qas", f"{where_paragraph}."):
                answers = [_text(answer, "text", at) for at, answer in _entries(entry, "answers", f"{where}.")]
                if entry.get("is_impossible"):
                    answers = []
                context = _text(paragraph, "context", where_paragraph)
                if context.endswith(_CANNOT_ANSWER):
                    raise DataError(f"{where_paragraph}: a dialogue of QuAC; evaluate this file as the task quac")
                yield _question(_key(entry, "id", where), context, _text(entry, "question", where), answers, where)


def _squad_row(row: Mapping[str, Any], where: str) -> Question:
    answers = _texts(_holder(row, "answers", where, ["text"]), "text", where)
    return _question(
        _key(row, "id", where), _text(row, "context", where), _text(row, "question", where), answers, where
    )


def _quac_file(data: Mapping[str, Any], path: Path) -> Iterator[Question]:
    """Yields the first question of each dialogue."""
    for where_article, article in _entries(data, "data", f"{path} "):
        for where_dialogue, dialogue in _entries(article, "paragraphs", f"{where_article}."):
            _key(dialogue, "id", where_dialogue)  # SQuAD's paragraphs, which look alike, have none
            where, entry = next(_entries(dialogue, "qas", f"{where_dialogue}."), (where_dialogue, {}))
            answers = [_text(answer, "text", at) for at, answer in _entries(entry, "answers", f"{where}.")]
            context = _quac_context(
                _text(article, "title", where_article),
                article.get("background") or "",
                _text(dialogue, "context", where_dialogue),
            )
            yield _question(_key(entry, "id", where), context, _text(entry, "question", where), answers, where)


def _quac_row(row: Mapping[str, Any], where: str) -> Question:
    questions = _texts(row, "questions", where)
    ids = _texts(row, "turn_ids", where)
    answers = _holder(row, "answers", where, ["texts"]).get("texts")
    if not questions or not ids or not isinstance(answers, Sequence) or not answers:
        raise DataError(f"{where}: 'questions', 'turn_ids' and 'answers.texts' must be lists with an entry a turn")
    context = _quac_context(
        _text(row, "wikipedia_page_title", where), row.get("background") or "", _text(row, "context", where)
    )
    first = _texts({"answers.texts[0]": answers[0]}, "answers.texts[0]", where)
    return _question(_key({"turn_ids": ids[0]}, "turn_ids", where), context, questions[0], first, where)


def _quac_context(title: str, background: str, context: str) -> str:
    """Returns the text as the paper's code gives it, title and page's beginning first."""
    return f"Title: {title}\n{background} {context.removesuffix(_CANNOT_ANSWER)}"


def _drop_file(data: Mapping[str, Any], path: Path) -> Iterator[Question]:
    for name, passage in data.items():
        where_passage = f"{path} passage {name!r}"
        if not isinstance(passage, Mapping) or "passage" not in passage:
            raise DataError(f"{where_passage}: drop is {{passage id: {{passage, qa_pairs}}}}, or {_PLAIN_LAYOUT}")
        for where, entry in _entries(passage, "qa_pairs", f"{where_passage} "):
            yield _drop_row({**entry, "passage": passage["passage"]}, where)


def _drop_row(row: Mapping[str, Any], where: str) -> Question:
    """Returns the question of a row with `answer` as DROP has it, or with the hub's `answers_spans`."""
    if "answers_spans" in row:
        spans = _holder(row, "answers_spans", where, ["spans", "types"])
        answers, kinds = _texts(spans, "spans", where), _texts(spans, "types", where)
        kind = kinds[0] if kinds else None
    else:
        kind, answers = _drop_answer(_holder(row, "answer", where), where)
    key = _key(row, "query_id", where)
    return _question(key, _text(row, "passage", where), _text(row, "question", where), answers, where, kind)


def _drop_answer(answer: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """Returns the answer's kind and texts: a number, one or more spans, or a date in the order day, month, year."""
    if answer.get("number") not in (None, ""):
        return "number", [str(answer["number"])]
    if answer.get("spans"):
        return "span", _texts(answer, "spans", where)
    date = answer.get("date") or {}
    parts = [str(date[part]) for part in ("day", "month", "year") if date.get(part)]
    return "date", [" ".join(parts)] if parts else []


def _plain_row(row: Mapping[str, Any], where: str) -> Question:
    # Rows of real files have no id, or null: the line tells them apart.
    key = _key(row, "id", where) if row.get("id") is not None else where.rpartition(" line ")[2].join(("line ", ""))
    answer = str(row["answer"])
    return _question(key, _text(row, "context", where), _text(row, "question", where), [answer], where)


def _question(
    key: str, context: str, question: str, answers: Sequence[str], where: str, kind: str | None = None
) -> Question:
    given = tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip() not in ("", _CANNOT_ANSWER)))
    return Question(key, context, question, given, kind, where)


def _entries(holder: Mapping[str, Any], name: str, prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (place, entry) of a list of objects."""
    entries = holder.get(name)
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
        raise DataError(f"{prefix.rstrip(' .')}: needs {name!r}, a list of objects; is this file of another task?")
    for at, entry in enumerate(entries):
        yield f"{prefix}{name}[{at}]", entry


def _holder(row: Mapping[str, Any], name: str, where: str, columns: Sequence[str] = ()) -> Mapping[str, Any]:
    """Returns an object; of a list of objects, which `datasets` makes of one for some cards, the columns as lists."""
    value = row.get(name)
    if columns and isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        return {column: [entry.get(column) for entry in value] for column in columns}
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: needs {name!r}, an object; or give {_PLAIN_LAYOUT}")
    return value


def _texts(holder: Mapping[str, Any], name: str, where: str) -> list[str]:
    values = holder.get(name)
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise DataError(f"{where}: {name!r} must be a list of texts, got {values!r:.60}")
    return list(values)


def _text(holder: Mapping[str, Any], name: str, where: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name!r} must be a text that is not empty, got {value!r:.60}")
    return value


def _key(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{where}: {name!r} must be an id that is not empty, got {value!r:.60}")
    return str(value)


_FILES: Mapping[str, Callable[[Mapping[str, Any], Path], Iterator[Question]]] = {
    "squad": _squad_file,
    "quac": _quac_file,
    "drop": _drop_file,
}
_ROWS: Mapping[str, Callable[[Mapping[str, Any], str], Question]] = {
    "squad": _squad_row,
    "quac": _quac_row,
    "drop": _drop_row,
}
