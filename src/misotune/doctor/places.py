"""Where files go and come from: the disk, shared memory, the model hub, NLTK's data."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from misotune.doctor.asking import Answer
from misotune.doctor.finding import Finding, in_gib, python_command

# The quickstart's model, run and export.
_WORKING_BYTES = 2 * 2**30
# A model of 7B parameters in bfloat16.
_CACHE_BYTES = 15 * 2**30
# NCCL takes about 33 MB for each pair of GPUs on a machine; Docker gives 64 MiB by itself.
_SHARED_BYTES = 2**30

_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_HUB_PURPOSE = "models and data sets by hub id; local folders need none"


def examine_disk(hub: Answer, *, num_gpus: int) -> list[Finding]:
    """Returns findings on the working folder, the hub's cache and shared memory."""
    cache = Path(hub.facts.get("cache") or os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return [_working_folder(Path.cwd()), _hub_cache(cache), *_shared_memory(Path("/dev/shm"), num_gpus)]


def examine_network(hub: Answer, reach: Answer | None, punkt: Answer) -> list[Finding]:
    """Returns findings on the hub and on NLTK's data.

    Args:
        hub: The settings of the hub's client.
        reach: What the hub answered; None: it was not asked.
        punkt: Whether NLTK's data are here.
    """
    if hub.error is not None:
        return [Finding("network", "hub", "problem", hub.error, _HUB_PURPOSE), _punkt(punkt)]
    return [_hub(hub.facts, reach), _token(hub.facts), _punkt(punkt)]


def _working_folder(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    detail = f"{in_gib(free)} free in {folder}"
    purpose = "data/, runs/ and exports/; train RECIPE --plan says what a run takes"
    if not os.access(folder, os.W_OK):
        detail, cure = f"{folder} cannot be written", "cd FOLDER   # one that you can write"
    elif free < _WORKING_BYTES:
        cure = "cd FOLDER   # on another disk; or give train output.runs_dir=FOLDER"
    else:
        return Finding("disk", "working folder", "ok", detail, purpose, is_required=True)
    return Finding("disk", "working folder", "problem", detail, purpose, cure, is_required=True)


def _hub_cache(folder: Path) -> Finding:
    there = folder
    while not there.exists():
        there = there.absolute().parent
    free = shutil.disk_usage(there).free
    detail, purpose = f"{in_gib(free)} free for {folder}", "models and data sets of the hub"
    if not os.access(there, os.W_OK):
        detail = f"{folder} cannot be written"
    elif free >= _CACHE_BYTES:
        return Finding("disk", "hub's cache", "ok", detail, purpose)
    else:
        detail += "; a model of 7B parameters takes 15 GiB"
    return Finding("disk", "hub's cache", "problem", detail, purpose, "export HF_HOME=FOLDER   # on another disk")


def _shared_memory(folder: Path, num_gpus: int) -> list[Finding]:
    if sys.platform != "linux" or not folder.is_dir():
        return []
    usage, purpose = shutil.disk_usage(folder), "several GPUs on this machine (NCCL)"
    detail = f"{in_gib(usage.free)} free of {in_gib(usage.total)}"
    if num_gpus < 2 or usage.free >= _SHARED_BYTES:
        return [Finding("disk", str(folder), "ok", detail, purpose)]
    cure = f"mount -o remount,size=8G {folder}   # in Docker: docker run --shm-size=8g ..."
    return [Finding("disk", str(folder), "problem", detail, purpose, cure)]


def _hub(facts: Mapping[str, Any], reach: Answer | None) -> Finding:
    endpoint = _without_password(str(facts["endpoint"]))
    offline = [f"{name}={os.environ[name]}" for name in _OFFLINE_VARIABLES if os.environ.get(name)]
    if facts["is_offline"]:
        detail = f"{endpoint}; not asked ({', '.join(offline)}): the cache and local folders serve"
        return Finding("network", "hub", "skipped", detail, _HUB_PURPOSE, f"unset {' '.join(_OFFLINE_VARIABLES)}")
    if reach is None:
        return Finding("network", "hub", "skipped", f"{endpoint}; not asked (--offline)", _HUB_PURPOSE)
    status = reach.facts.get("status", 0)
    if status in (401, 403):
        detail = f"{endpoint} refuses the token" if facts["has_token"] else f"{endpoint} asks for a token"
        return Finding("network", "hub", "problem", f"{detail} ({status})", _HUB_PURPOSE, "hf auth login")
    if reach.error is None and status < 400:
        return Finding("network", "hub", "ok", f"{endpoint} answers", _HUB_PURPOSE)
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    by_way = f", by the proxy of {proxy}" if proxy else ""
    detail = f"{endpoint} does not answer{by_way} ({reach.error or f'HTTP {status}'})"
    cure = "export HF_HUB_OFFLINE=1   # and local folders; or HTTPS_PROXY=http://HOST:PORT, HF_ENDPOINT=https://MIRROR"
    return Finding("network", "hub", "problem", detail, _HUB_PURPOSE, cure)


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _token(facts: Mapping[str, Any]) -> Finding:
    purpose = "gated models such as Llama; export --push-to-hub"
    if facts["has_token"]:
        where = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "hf auth login"
        return Finding("network", "hub token", "ok", f"set, by {where}", purpose)
    return Finding("network", "hub token", "missing", "not set", purpose, "hf auth login")


def _punkt(punkt: Answer) -> Finding:
    purpose = "two of IFEval's verifiers, which count sentences and capital words"
    cure = f"{python_command()} -m nltk.downloader punkt_tab   # without internet: NLTK_DATA=FOLDER with a copy"
    if punkt.error is not None:
        return Finding("network", "NLTK punkt_tab", "skipped", f"NLTK cannot be asked: {punkt.error}", purpose)
    if punkt.facts["is_here"]:
        return Finding("network", "NLTK punkt_tab", "ok", "here", purpose)
    return Finding("network", "NLTK punkt_tab", "missing", "not here", purpose, cure)
