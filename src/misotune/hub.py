"""Asking the model hub once, before a library asks it for half a minute."""

from pathlib import Path

from misotune.errors import UsageError

_TIMEOUT_S = 10


def require_model(name: str, revision: str | None = None) -> None:
    """Makes sure that a model can be had: a folder, a copy in the hub's cache, or an answer from the hub.

    Args:
        name: A folder, or a hub id.
        revision: Branch, tag or commit on the hub; None: the newest.

    Raises:
        UsageError: None of them.
    """
    if Path(name).is_dir():
        return
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return
        if HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set, and the hub's cache has no copy")
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_S)
    except Exception as error:  # each network library below huggingface_hub raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"model {name}: no such folder here, and the hub gave none ({reason:.160}); "
            "name the folder of a local copy (a recipe: model.name=PATH), or look at the name, the network and, "
            "for gated models, your access"
        ) from error


def reach_dataset(name: str, revision: str | None = None) -> None:
    """Asks the hub once whether it has a data set; on its own `datasets` tries a dead network for half a minute.

    Nothing is asked where the environment forbids the network (`HF_HUB_OFFLINE`).

    Raises:
        Exception: It has not, or cannot be reached; each network library below huggingface_hub raises its own.
    """
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE:
        huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT_S)
