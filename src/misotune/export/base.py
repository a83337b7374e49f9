"""What the base model says of itself: its name on the hub, and its licence."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
_LICENSE_KEYS = ("license", "license_name", "license_link")


def hub_id(name: str) -> str | None:
    """Returns the hub id of a model named by hub id or by a folder of the hub's cache, else None.

    >>> hub_id("meta-llama/Meta-Llama-3-8B-Instruct"), hub_id("/models/llama")
    ('meta-llama/Meta-Llama-3-8B-Instruct', None)
    """
    if cached := _HUB_CACHE.search(name):
        return "/".join(cached.groups())
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def read_license(name: str, revision: str | None) -> dict[str, str]:
    """Returns `license` (and its name and link) as the base model's own card or configuration has it.

    Nothing is fetched: a folder is read, or the hub's cache. Empty when nothing is known.
    """
    said = _front_matter(_find(name, "README.md", revision))
    config = _find(name, "config.json", revision)
    if "license" not in said and config is not None:
        said = json.loads(config.read_text(encoding="utf-8"))
    return {key: said[key] for key in _LICENSE_KEYS if isinstance(said.get(key), str)}


def _find(name: str, file: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    if hub_id(name) is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _front_matter(card: Path | None) -> dict[str, Any]:
    if card is None:
        return {}
    match = re.match(r"---\s*\n(.*?)\n---\s*\n", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        said = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return said if isinstance(said, dict) else {}
