"""The study's rows, out of the real samples: verifiable ones, split into training and validation, and chats.

    write_verifiable   rows whose outputs meet every constraint strictly        -> rows/verifiable.jsonl
    split              those that `misotune prepare` kept of them (no IFEval prompt, no duplicate), by the hash of
                       the task                            -> rows/<source>.jsonl to train on, rows/validation.jsonl
    write_chats        Alpaca's and ShareGPT's             -> rows/alpaca.jsonl, rows/sharegpt-{constrained,plain}.jsonl

A row is at most `max_bytes` of UTF-8 long, and a token is at least a byte: with `data.max_length` above that, no
tokenizer makes a row too long, and no variant drops one that another trains on.
"""

import gzip
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

VERIFIABLE = ("follow_complex_instruction", "ifeval_extended")
ALPACA, SHAREGPT = "chat/alpaca_en_demo.json.gz", "chat/sharegpt_sample.jsonl.gz"
VALIDATION_SHARE = 0.12


def write_verifiable(data: Path, folder: Path, max_bytes: int) -> None:
    """Writes `verifiable.jsonl`: all that training and validation need of a row."""
    write_jsonl(
        folder / "verifiable.jsonl", (row for name in VERIFIABLE for row in read_verifiable(data, name, max_bytes))
    )


def read_verifiable(data: Path, name: str, max_bytes: int) -> Iterator[Row]:
    for number, row in enumerate(read_jsonl(data / name / "joined_train.jsonl.gz")):
        if all(row["strict"]) and num_bytes(row["prompt"], row["output"]) <= max_bytes:
            yield {
                "id": f"{name}-{number}",
                "instruction": row["prompt"],  # the constraints stand in it to the letter
                "constraints": row["constraints"],
                "output": row["output"],
                "task": row["instruction"],
                "instruction_id_list": row["instruction_id_list"],
                "kwargs": row["kwargs"],
            }


def split(folder: Path, prepared: Path) -> None:
    """Writes what is trained on, source by source, and `validation.jsonl` in IFEval's form.

    Args:
        folder: Holds `verifiable.jsonl`.
        prepared: The dataset that `misotune prepare` made of it; rows that its guards left out are left out here.
    """
    dropped = prepared / "dropped.jsonl"
    left_out = {row["id"] for row in read_jsonl(dropped) if row["kind"] != "changed"} if dropped.exists() else set()
    kept = [row for row in read_jsonl(folder / "verifiable.jsonl") if row["id"] not in left_out]
    for name in VERIFIABLE:
        trained = (row for row in kept if row["id"].startswith(name) and not is_held_out(row["task"]))
        columns = ("id", "instruction", "constraints", "output")
        write_jsonl(folder / f"{name}.jsonl", ({column: row[column] for column in columns} for row in trained))
    # In the order of the hash, so that the first so many (`eval --limit`) are drawn from all.
    held_out = sorted(
        (row for row in kept if is_held_out(row["task"])), key=lambda row: (task_hash(row["task"]), row["id"])
    )
    write_jsonl(folder / "validation.jsonl", map(ifeval_form, held_out))


def ifeval_form(row: Row) -> Row:
    """Returns a row as `misotune eval ifeval --data` reads it."""
    return {"key": row["id"], "prompt": row["instruction"]} | {
        key: row[key] for key in ("instruction_id_list", "kwargs")
    }


def is_held_out(task: str) -> bool:
    """Returns whether rows of a task are validation rows: a function of its text alone.

    The task is the prompt without its constraints, so that one task with other constraints is on the same side.
    """
    return task_hash(task) < VALIDATION_SHARE


def task_hash(task: str) -> float:
    """Returns a number from 0 to 1; case, white space and the form of accents do not count."""
    folded = " ".join(unicodedata.normalize("NFC", task).casefold().split())
    return int.from_bytes(hashlib.sha256(folded.encode()).digest()[:6], "big") / 2**48


def write_chats(data: Path, folder: Path, max_bytes: int) -> None:
    """Writes Alpaca's rows, and ShareGPT's in two halves: one gets constraints, the other stays as it is."""
    alpaca = json.loads(gzip.decompress((data / ALPACA).read_bytes()))
    short = (
        row for row in alpaca if num_bytes(*(row[column] for column in ("instruction", "input", "output"))) <= max_bytes
    )
    write_jsonl(folder / "alpaca.jsonl", short)
    chats = [
        {"id": chat["id"], "conversations": first_turns(chat["conversations"], max_bytes)}
        for chat in read_jsonl(data / SHAREGPT)
    ]
    for name, is_first_half in (("constrained", True), ("plain", False)):
        half = (chat for chat in chats if chat["conversations"] and (task_hash(chat["id"]) < 0.5) == is_first_half)
        write_jsonl(folder / f"sharegpt-{name}.jsonl", half)


def first_turns(turns: list[Row], max_bytes: int) -> list[Row]:
    """Returns whole pairs of a question and its answer, from the first on, as many as fit; none if none does.

    >>> said = [("gpt", "Hi"), ("human", "1+1?"), ("gpt", "2"), ("human", "Ok")]
    >>> turns = [{"from": who, "value": text} for who, text in said]
    >>> [turn["value"] for turn in first_turns(turns, 100)]
    ['1+1?', '2']
    """
    start = next((at for at, turn in enumerate(turns) if turn["from"] != "gpt"), len(turns))
    kept: list[Row] = []
    size = 0
    for at in range(start, len(turns)):
        size += num_bytes(turns[at]["value"])
        if size > max_bytes:
            break
        if turns[at]["from"] == "gpt":
            kept = turns[start : at + 1]
    return kept


def num_bytes(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)


def read_jsonl(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
