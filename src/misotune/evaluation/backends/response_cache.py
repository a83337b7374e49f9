"""Responses kept as they come, so that an evaluation that was stopped goes on where it was.

They lie in one SQLite file beside the result folder, `.TASK.responses.sqlite`: the folder itself appears whole, at
the end. The file is for an evaluation that was interrupted, and is removed when the command has written its results:
`samples.jsonl` holds the responses then, and whoever evaluates again wants to know what the model says now (the
model behind an endpoint may be another one under the same name, which no key can tell).
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from misotune.chat.cache import AnswerCache
from misotune.chat.messages import ChatAnswer
from misotune.evaluation.backends.base import Response

_CONFIG_FILES = ("config.json", "adapter_config.json")


def cache_path(folder: Path) -> Path:
    """Returns where the responses for a result folder are kept."""
    return folder.with_name(f".{folder.name}.responses.sqlite")


def discard_responses(folder: Path) -> None:
    """Removes the responses kept for a result folder, if there are any."""
    path = cache_path(folder)
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        file.unlink(missing_ok=True)


class ResponseCache:
    """The responses of a model in this process, by key.

    Raises:
        UsageError: The file cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self._answers = AnswerCache(path)

    def __enter__(self) -> "ResponseCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.__exit__(kind, error, trace)

    def get(self, key: str) -> Response | None:
        """Returns the response of a key, or None.

        Raises:
            RunError: The file cannot be read; says how to go on.
        """
        kept = self._answers.get(key)
        return None if kept is None else Response(**json.loads(kept.text))

    def put(self, key: str, response: Response) -> None:
        """Keeps a response, at once.

        Raises:
            RunError: It cannot be written; says how to go on.
        """
        self._answers.put(key, ChatAnswer(json.dumps(asdict(response))))


def response_key(model: Any, prompt_ids: list[int], *settings: Any) -> str:
    """Returns a digest of all that decides a greedy response.

    Args:
        model: What `model_identity` returned.
        prompt_ids: The rendered prompt.
        settings: All else: number of new tokens, dtype, end ids, versions.
    """
    return hashlib.sha256(json.dumps([model, prompt_ids, *settings], sort_keys=True).encode()).hexdigest()


def model_identity(path: str, commit: str | None = None) -> Any:
    """Returns what tells a model from every other, as JSON can hold it.

    Of a folder, the files' names, sizes and times of writing, and the configurations: a model that was trained
    again under the same name is another one. An adapter's base model belongs to it.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        commit: The hub's, where it is known.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [path, commit]
    stats = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    configs = [(folder / name).read_text(encoding="utf-8") for name in _CONFIG_FILES if (folder / name).is_file()]
    identity: list[Any] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    identity.append(configs)
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") if adapter.is_file() else None
    return [*identity, model_identity(base)] if base else identity
