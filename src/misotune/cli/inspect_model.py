"""The model that `misotune inspect` looks into."""

from typing import Any


def load_model(path: str, dtype: str | None) -> tuple[Any, Any]:
    """Returns the model of a folder or hub id, and its tokenizer.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        dtype: `auto`, `bfloat16` or `float32`; None: float32 on a CPU, else as the weights are stored.
    """
    import torch

    from misotune.evaluation.backends.chat_model import load_chat_model

    loaded = load_chat_model(path, dtype=dtype or ("auto" if torch.cuda.is_available() else "float32"))
    return loaded.model, loaded.tokenizer
