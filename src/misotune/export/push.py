"""Uploading an export to the model hub: only when asked, and only after the proof."""

import re
from pathlib import Path
from typing import Any

from misotune.errors import RunError, UsageError

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def check_push(name: str, api: Any = None) -> Any:
    """Returns the hub's interface, after making sure that one may upload to it: before hours of work, not after.

    Args:
        name: The repository, OWNER/NAME.
        api: In place of huggingface_hub's.

    Raises:
        UsageError: The name is none, the hub is switched off, or no token is known to it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not _REPOSITORY.fullmatch(name):
        raise UsageError(f"--push-to-hub {name}: not a repository's name; write OWNER/NAME")
    if api is None and HF_HUB_OFFLINE:
        raise UsageError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or export without pushing")
    api = api or HfApi()
    try:
        api.whoami()
    except Exception as error:  # each network library below huggingface_hub raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--push-to-hub {name}: the hub does not know you ({reason:.160}); log in: hf auth login"
        ) from error
    return api


def push_to_hub(folder: Path, name: str, api: Any) -> str:
    """Uploads a proved export, and returns where it is to be seen; a repository that is not there is made private.

    Args:
        folder: The export.
        name: The repository.
        api: As `check_push` returned it.

    Raises:
        RunError: It failed; the export stays.
    """
    try:
        url = api.create_repo(repo_id=name, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=name, repo_type="model", folder_path=str(folder), commit_message="Exported by misotune"
        )
    except Exception as error:  # as above
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{folder} is exported and proved, but was not pushed ({reason:.160}); push it: hf upload {name} {folder}"
        ) from error
    return str(url)
