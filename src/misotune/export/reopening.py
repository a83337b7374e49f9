"""Having a checkpoint opened by the script `reopen.py`, in a fresh process."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from misotune.errors import RunError
from misotune.export.probe import MESSAGES, PROBE_LOGITS

MAX_NEW_TOKENS = 16

_SCRIPT = Path(__file__).with_name("reopen.py")


@dataclass(frozen=True, slots=True)
class Base:
    """The base model that an adapter is put on.

    Attributes:
        name: A hub id or a folder.
        revision: On the hub; None: the newest.
        quantization: bitsandbytes' settings that it is rounded by, and written out again; None: it is as published.
    """

    name: str
    revision: str | None
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """What a fresh process is asked for.

    Attributes:
        input_ids: Tokens to give logits on.
        dtype: To compute in; `auto`: the checkpoint's own.
        tokenizer: Folder or hub id of the tokenizer; None: nothing is generated.
        has_template: Whether the tokenizer has a chat template.
        end_id: The token at which generation must stop, to be forced on it; None: not tried.
        base: For an adapter.
    """

    input_ids: Tensor
    dtype: str
    tokenizer: str | None = None
    has_template: bool = True
    end_id: int | None = None
    base: Base | None = None


def open_checkpoint(folder: Path, opening: Opening, subject: str) -> tuple[dict[str, Any], Tensor]:
    """Returns what stock transformers found in a checkpoint, as `reopen.reopen` has it, and its last logits.

    Args:
        folder: The checkpoint.
        opening: What to do.
        subject: Beginning of the message when it fails.

    Raises:
        RunError: It cannot be opened.
    """
    base = asdict(opening.base) if opening.base else {"name": None, "revision": None, "quantization": None}
    # Off line: a checkpoint must be whole in itself. An adapter's base model may be one of the hub.
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    if opening.base is None:
        environment["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="misotune-export-") as scratch:
        request, answer, logits = (Path(scratch) / name for name in ("request", "answer", "logits.safetensors"))
        content = {
            "checkpoint": str(folder.resolve()),
            "base": base["name"],
            "revision": base["revision"],
            "quantization": base["quantization"],
            "input_ids": opening.input_ids.tolist(),
            "num_logits": PROBE_LOGITS,
            "dtype": opening.dtype,
            "tokenizer": opening.tokenizer,
            "has_template": opening.has_template,
            "messages": MESSAGES,
            "end_id": opening.end_id,
            "max_new_tokens": MAX_NEW_TOKENS,
            "answer": str(answer),
            "logits": str(logits),
        }
        request.write_text(json.dumps(content), encoding="utf-8")
        # -P keeps the script's own folder off sys.path. Not -I: clusters put transformers on PYTHONPATH.
        done = subprocess.run(
            [sys.executable, "-P", str(_SCRIPT), str(request)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,  # nobody answers questions about remote code
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = (
                lines[-1].strip() if lines else f"exit code {done.returncode}, the process may have been out of memory"
            )
            raise RunError(f"{subject}: stock transformers cannot open and run it: {reason}")
        return json.loads(answer.read_text(encoding="utf-8")), load_file(logits)["logits"]
