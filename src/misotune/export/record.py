"""What an export says of itself, in `misotune_export.json`, so that `--check` can repeat the proof without the run.

Small, and no weight file: inference engines load every `*.safetensors` that they find. Of the logits it holds some
columns of the vocabulary, which tell two models apart as well as all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from misotune.errors import RunError
from misotune.export.probe import Probe
from misotune.export.proof import Chat
from misotune.export.reopening import Base
from misotune.export.source import ADAPTER_WEIGHTS
from misotune.storage import sha256_of

RECORD = "misotune_export.json"
NUM_COLUMNS = 64

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What the proof of an export is repeated with.

    Attributes:
        title: What was exported.
        probe: Tokens, and some of the logits of the model that it was compared with.
        chat: What training's chat template makes of a question.
        opens_in: Format that it was opened in; `auto`: its own.
        rounded_to: Format that weights were rounded to.
        base: Of an adapter.
        weights: Size and SHA-256 of each weight file.
    """

    title: str
    probe: Probe
    chat: Chat
    opens_in: str
    rounded_to: str | None
    base: Base | None
    weights: Mapping[str, Mapping[str, Any]]


def with_columns(probe: Probe) -> Probe:
    """Returns a probe with some columns of its logits, evenly spread."""
    size = probe.logits.shape[-1]
    columns = torch.linspace(0, size - 1, min(NUM_COLUMNS, size)).long()
    return Probe(probe.input_ids, probe.logits[:, columns], probe.dtype, probe.owner, columns)


def write_record(folder: Path, record: Record) -> None:
    """Writes an export's record."""
    assert record.probe.columns is not None
    content = {
        "format": _FORMAT,
        "misotune": version("misotune"),
        "exported": record.title,
        "weights": dict(record.weights),
        "base": None
        if record.base is None
        else {"name": record.base.name, "revision": record.base.revision, "quantization": record.base.quantization},
        "chat": {
            "prompt_ids": record.chat.prompt_ids,
            "end_of_turn_id": record.chat.end_id,
            "template_sha256": record.chat.template_sha256,
            "day": record.chat.day,
        },
        "opened_in": record.opens_in,
        "rounded_to": record.rounded_to,
        "logits": {
            "of": record.probe.owner,
            "computed_in": record.probe.dtype,
            "input_ids": record.probe.input_ids.tolist(),
            "columns": record.probe.columns.tolist(),
            "values": [[float(f"{value:.7g}") for value in row] for row in record.probe.logits.tolist()],
        },
    }
    (folder / RECORD).write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """Returns an export's record; None: it has none.

    Raises:
        RunError: It cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        logits, chat = content["logits"], content["chat"]
        return Record(
            title=content["exported"],
            probe=Probe(
                torch.tensor(logits["input_ids"]),
                torch.tensor(logits["values"]),
                logits["computed_in"],
                logits["of"],
                torch.tensor(logits["columns"]),
            ),
            chat=Chat(chat["prompt_ids"], chat["end_of_turn_id"], chat["template_sha256"], chat["day"]),
            opens_in=content["opened_in"],
            rounded_to=content["rounded_to"],
            base=None if content["base"] is None else Base(**content["base"]),
            weights=content["weights"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); delete it to check what can be without it"
        ) from error


def weight_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns size and SHA-256 of a checkpoint's weight files."""
    paths = [*folder.glob("model*.safetensors"), *folder.glob(ADAPTER_WEIGHTS)]
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(paths)}


def check_entries(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes sure that weight files are those that were exported.

    Raises:
        RunError: One is missing, cut or changed.
    """
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise RunError(f"{folder}: {name} is missing; copy or export it again")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise RunError(f"{folder}: {name} has {size:,} bytes of {entry['bytes']:,}; copy or export it again")
        if sha256_of(path) != entry["sha256"]:
            raise RunError(f"{folder}: {name} has changed since it was exported; copy or export it again")
