"""Files and folders that are whole when they are there: hashes, and folders that get their name last."""

import hashlib
import os
import shutil
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(written: Path, folder: Path) -> None:
    """Renames a folder that was written beside its place, once its files have reached the disk.

    What was in its place goes when the new one is there. Between two renames the place is empty for a moment: a
    process killed just then leaves the old folder as `.NAME.old` beside it.
    """
    for path in written.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    written.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
