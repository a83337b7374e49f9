"""Checkpoints `step-N`: written beside, named last, with a manifest by which a broken one is known."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from misotune.storage import recover_folder, replace_folder, sha256_of

MANIFEST = "manifest.json"
# Where `final/` is written before it is named, in the run folder.
PARTIAL_FINAL = ".final.partial"


def finish_checkpoint(written: Path, folder: Path, made: Mapping[str, Any]) -> int:
    """Gives a checkpoint that was written beside its name, after its manifest of sizes and hashes.

    Args:
        written: The folder that it was written to; all its files have reached the disk.
        folder: Its name, `step-N`.
        made: What it was made by, for `made_by`.

    Returns:
        Its size in bytes.
    """
    files = sorted(path for path in written.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(written)): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, _hashes(files), strict=True)
    }
    manifest = {"format": 2, "made": dict(made), "files": entries}
    (written / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    replace_folder(written, folder)
    return sum(entry["bytes"] for entry in entries.values())


def made_by(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint was made by, as `finish_checkpoint` was told; empty for those of older versions."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("made", {})


def checkpoint_problem(folder: Path, *, reads_files: bool = True) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is whole.

    Args:
        folder: The checkpoint.
        reads_files: Compare hashes too; False: names and sizes alone, which takes no time.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return "it has no manifest"
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError):
        return "its manifest cannot be read"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"{name} is missing or of the wrong size"
    if reads_files:
        for (name, entry), sha256 in zip(entries.items(), _hashes(folder / name for name in entries), strict=True):
            if sha256 != entry["sha256"]:
                return f"{name} has changed"
    return None


def last_whole_checkpoint(checkpoints: Path, *, reads_files: bool = True) -> tuple[Path | None, list[str]]:
    """Returns the newest whole checkpoint, and a line for each newer one that is broken.

    Args:
        checkpoints: The folder of checkpoints.
        reads_files: As for `checkpoint_problem`.
    """
    skipped: list[str] = []
    for folder in reversed(list_checkpoints(checkpoints)):
        problem = checkpoint_problem(folder, reads_files=reads_files)
        if problem is None:
            return folder, skipped
        skipped.append(f"{folder} is skipped: {problem}")
    return None, skipped


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Returns the checkpoint folders, oldest first."""
    return sorted(checkpoints.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def prune_checkpoints(checkpoints: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints."""
    for folder in list_checkpoints(checkpoints)[:-keep]:
        shutil.rmtree(folder)


def remove_leftovers(checkpoints: Path, partial_final: Path) -> list[str]:
    """Removes what a killed process left half-written, and returns a line for each.

    Only for the process that holds the run: it would remove what another one is writing.

    Args:
        checkpoints: The folder of checkpoints.
        partial_final: Where `final/` is written before it is named.
    """
    said: list[str] = []
    for old in checkpoints.glob(".step-*.old"):
        recover_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
    partial = [partial_final] if partial_final.is_dir() else []
    for path in [*sorted([*checkpoints.glob("checkpoint-*"), *checkpoints.glob(".*")]), *partial]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        if not path.name.endswith(".gone"):  # a whole one's remains: it was being deleted
            said.append(f"{path} is removed: the process that wrote it was stopped before its end")
    return said


def _hashes(files: Iterable[Path]) -> list[str]:
    """Returns the SHA-256 of each file, several at a time: hashing leaves the interpreter free."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_of, files))
