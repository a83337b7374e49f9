"""Checkpoints `step-N`: written beside, named last, with a manifest by which a broken one is known."""

import json
import shutil
from pathlib import Path

from misotune.storage import replace_folder, sha256_of

MANIFEST = "manifest.json"


def finish_checkpoint(written: Path, folder: Path) -> None:
    """Gives a checkpoint that was written beside its name, after its manifest of sizes and hashes."""
    files = sorted(path for path in written.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(written)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    manifest = {"format": 1, "files": entries}
    (written / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    replace_folder(written, folder)


def checkpoint_problem(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is whole."""
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
        if sha256_of(path) != entry["sha256"]:
            return f"{name} has changed"
    return None


def last_whole_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest whole checkpoint, and a line for each newer one that is broken."""
    skipped: list[str] = []
    for folder in reversed(list_checkpoints(checkpoints)):
        problem = checkpoint_problem(folder)
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
