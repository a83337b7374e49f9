"""Evaluation sets as n-gram hashes: the shipped ones by name, any file of prompts by its path."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misotune.data.decompose.rules import decompose_text
from misotune.data.files import BrokenRow, Row, read_rows
from misotune.data.guards.text import NgramHashes, fold, ngram_hashes, words_of
from misotune.data.records import brief
from misotune.data.starter import EVAL_FILE
from misotune.errors import DataError, UsageError

NGRAM_WORDS = 8

# Hashes alone, so that the set can be compared with offline and its text is not shipped again; see make_hashed_set.
_HASHED_SETS = {"ifeval": Path(__file__).parent / "ifeval.npz"}
_PROMPT_FILES = {"starter": EVAL_FILE}
SET_NAMES = (*_PROMPT_FILES, *_HASHED_SETS)

_TEXT_COLUMNS = ("prompt", "instruction", "question", "text")
_CHAT_COLUMNS = ("messages", "conversations", "prompt", "turns")
_USER_ROLES = ("user", "human")


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """A prompt as hashes.

    Attributes:
        hashes: Each run of `NGRAM_WORDS` words, in order; a shorter prompt is one run.
        is_task: For each word whether it belongs to the task, and not to a constraint on the answer.
    """

    hashes: NgramHashes
    is_task: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The prompts of one evaluation set, and what the account calls it."""

    name: str
    prompts: tuple[EvaluationPrompt, ...]


def hash_prompt(text: str) -> EvaluationPrompt:
    """Returns a prompt as hashes; the rules of `--decompose rules` say which of its words are constraints."""
    words: list[str] = []
    is_task: list[bool] = []
    at = 0
    spans = [(found.start, found.end) for found in decompose_text(text).found]
    for start, end in (*spans, (len(text), len(text))):
        for piece, piece_is_task in ((text[at:start], True), (text[start:end], False)):
            of_piece = words_of(fold(piece))
            words += of_piece
            is_task += [piece_is_task] * len(of_piece)
        at = end
    return EvaluationPrompt(ngram_hashes(words, NGRAM_WORDS), np.array(is_task, dtype=np.bool_))


def load_evaluation_set(name: str | Path) -> EvaluationSet:
    """Returns a shipped set, or the prompts of a file: JSON lines, JSON, CSV, Parquet, or text with a prompt a line.

    Args:
        name: One of `SET_NAMES`, or a path.

    Raises:
        UsageError: There is no such set and no such file.
        DataError: The file cannot be read, or a row of it has no prompt.
    """
    if str(name) in _HASHED_SETS:
        return EvaluationSet(str(name), read_hashed_set(_HASHED_SETS[str(name)]))
    path = _PROMPT_FILES.get(str(name), Path(name))
    if not path.is_file():
        raise UsageError(
            f"--decontaminate {name}: neither a shipped set ({', '.join(SET_NAMES)}) nor a file; 'none' switches it off"
        )
    label = str(name) if str(name) in _PROMPT_FILES else path.name
    return EvaluationSet(label, tuple(map(hash_prompt, read_prompts(path))))


def read_prompts(path: Path) -> Iterator[str]:
    """Yields the prompts of an evaluation file; of a chat, each user turn.

    Raises:
        DataError: The file cannot be read, or a row of it has no prompt.
    """
    if path.suffix == ".txt":
        yield from _lines_of(path)
        return
    for row in read_rows(path):
        if isinstance(row, BrokenRow):
            raise DataError(f"{row.where}: {row.reason}")
        prompts = _prompts_of(row)
        if not prompts:
            columns = ", ".join(dict.fromkeys((*_TEXT_COLUMNS, *_CHAT_COLUMNS)))
            raise DataError(f"{row.where}: no prompt; one of these columns is needed: {columns}")
        yield from prompts


def _lines_of(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path}: the file holds no prompts")
    yield from lines


def _prompts_of(row: Row) -> list[str]:
    values = row.values
    for column in _CHAT_COLUMNS:
        turns = values.get(column)
        if isinstance(turns, Sequence) and not isinstance(turns, str):
            prompts = [_user_text(turn, f"{row.where}: {column}") for turn in turns]
            return [prompt for prompt in prompts if prompt.strip()]
    for column in _TEXT_COLUMNS:
        text = values.get(column)
        if isinstance(text, str) and text.strip():
            more = values.get("input") if column == "instruction" else None
            return [f"{text}\n{more}" if isinstance(more, str) and more.strip() else text]
    return []


def _user_text(turn: Any, where: str) -> str:
    """The text of a turn; empty where another than the user speaks."""
    if isinstance(turn, str):
        return turn
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a turn must be a text or have a role and a content, it is {brief(turn)}")
    text = turn.get("content", turn.get("value"))
    return text if turn.get("role", turn.get("from")) in _USER_ROLES and isinstance(text, str) else ""


def write_hashed_set(path: Path, prompts: Sequence[EvaluationPrompt], source: Mapping[str, Any]) -> None:
    """Writes prompts as hashes; the same prompts give the same bytes.

    Args:
        path: An .npz file.
        prompts: The prompts.
        source: Where they came from, kept with them.
    """
    np.savez_compressed(
        path,
        hashes=np.concatenate([prompt.hashes for prompt in prompts]),
        is_task=np.packbits(np.concatenate([prompt.is_task for prompt in prompts])),
        num_words=np.array([len(prompt.is_task) for prompt in prompts], dtype=np.uint32),
        about=np.array(json.dumps({**source, "ngram_words": NGRAM_WORDS, "prompts": len(prompts)})),
    )


def read_hashed_set(path: Path) -> tuple[EvaluationPrompt, ...]:
    """Returns the prompts that `write_hashed_set` wrote.

    Raises:
        DataError: The file is damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            num_words = file["num_words"].astype(np.int64)
            is_task = np.unpackbits(file["is_task"], count=int(num_words.sum())).astype(np.bool_)
            hashes = file["hashes"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged; install misotune again ({error})") from error
    num_hashes = np.maximum(num_words - NGRAM_WORDS + 1, np.minimum(num_words, 1))
    of_prompts = np.split(hashes, np.cumsum(num_hashes)[:-1])
    tasks = np.split(is_task, np.cumsum(num_words)[:-1])
    return tuple(EvaluationPrompt(*both) for both in zip(of_prompts, tasks, strict=True))
