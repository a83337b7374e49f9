"""`misotune export --check`: the proof of a checkpoint once more, or what can be proved without an export's record."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from misotune.errors import LayoutError, RunError, UsageError
from misotune.export.proof import chat_of, check_chat, check_contents, prove
from misotune.export.record import RECORD, Record, check_entries, read_record
from misotune.export.reopening import Base, Opening, open_checkpoint
from misotune.export.sentences import proof_sentences
from misotune.export.source import ADAPTER_CONFIG, CONFIG, base_of_adapter
from misotune.layout import ChatTemplate


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found of a checkpoint; it holds.

    Attributes:
        path: The checkpoint.
        exported: What it was exported from, as its record says; None: it has none.
        checked: What was proved, a sentence each.
        not_checked: What could not be, with the reason.
    """

    path: Path
    exported: str | None
    checked: list[str]
    not_checked: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return {**asdict(self), "path": str(self.path)}


def check_export(folder: Path) -> CheckReport:
    """Repeats the proof of an export; of any other checkpoint, what can be proved without its training.

    Args:
        folder: A checkpoint: a model or an adapter.

    Raises:
        UsageError: There is none.
        RunError: It is not what it should be; the message says what.
    """
    if not any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
        raise UsageError(f"{folder}: no checkpoint: it has neither {CONFIG} nor {ADAPTER_CONFIG}")
    record = read_record(folder)
    return _check_foreign(folder) if record is None else _check_recorded(folder, record)


def _check_recorded(folder: Path, record: Record) -> CheckReport:
    check_entries(folder, record.weights)
    proof = prove(
        folder,
        record.probe,
        record.chat,
        opens_in=record.opens_in,
        rounded_to=record.rounded_to,
        base=record.base,
        subject=str(folder),
    )
    size = sum(entry["bytes"] for entry in record.weights.values())
    lines = [
        f"Its weight files ({len(record.weights)}, {size / 1e6:,.1f} MB) are those that were exported, to the bit.",
        *proof_sentences(proof, None),
    ]
    return CheckReport(folder, record.title, lines, [])


def _check_foreign(folder: Path) -> CheckReport:
    base = base_of_adapter(folder) if (folder / ADAPTER_CONFIG).is_file() else None
    tokenizer, template, problem = _tokenizer(folder, base)
    chat = None
    if template is not None:
        try:
            chat = chat_of(template)
        except LayoutError as error:
            problem = str(error)
    ids = torch.tensor(chat.prompt_ids if chat else list(range(16)))
    opening = Opening(
        ids,
        "auto",
        tokenizer,
        has_template=template is not None,
        end_id=chat.end_id if chat else None,
        base=base,
    )
    found, logits = open_checkpoint(folder, opening, str(folder))
    check_contents(found, str(folder))
    if not logits.isfinite().all():
        raise RunError(f"{folder}: its logits are not finite")
    opener = "transformers alone" if base is None else f"transformers and peft, on {base.name}"
    checked = [
        f"Opened in a fresh process by {opener}, with no code of its own: {found['num_parameters']:,} weights in "
        f"{found['dtype']}, all names and shapes there, all finite."
    ]
    if base is not None:
        checked.append(f"The adapter changes {found['num_changed']} of {found['num_modules']} modules.")
    reason = f"it has no {RECORD}, which `misotune export` writes"
    not_checked = [
        f"That its logits are those of the trained model: {reason}.",
        f"That its weight files are unchanged: {reason}.",
    ]
    if chat is not None:
        check_chat(found, chat, str(folder))
        checked.append(
            f"Generation stops at token {chat.end_id}, with which its chat template ends a response; it generated "
            f"{len(found['response_ids'])} tokens."
        )
        not_checked.append(f"That its chat template gives the tokens of training: {reason}.")
    else:
        if tokenizer is not None and not found["response_ids"]:
            raise RunError(f"{folder}: it generates nothing")
        not_checked.append(f"That a chat gives the tokens of training and a response ends: {problem}.")
    return CheckReport(folder, None, checked, not_checked)


def _tokenizer(folder: Path, base: Base | None) -> tuple[str | None, ChatTemplate | None, str]:
    """Returns where a checkpoint's tokenizer is, its chat template, and what lacks of the two."""
    from transformers import AutoTokenizer

    where = str(folder.resolve())
    if base is not None and not (folder / "tokenizer_config.json").is_file():
        where = base.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        return None, None, f"its tokenizer cannot be loaded ({str(error).splitlines()[0]:.120})"
    if not getattr(tokenizer, "chat_template", None):
        return where, None, "its tokenizer has no chat template"
    return where, ChatTemplate(tokenizer), ""
