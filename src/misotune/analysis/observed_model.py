"""A model that is looked at: observed while it runs, and what a result says of it."""

import platform
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from misotune.attention import ATTENTION_NAME, register
from misotune.attention.switching import attention_of
from misotune.packages import installed_version


@contextmanager
def observed_attention(
    model: Any, name: str, forward: Callable[..., tuple[Tensor, None]], *, masks_of: str = ATTENTION_NAME
) -> Generator[None]:
    """Runs a model with an attention that also notes what it sees, and gives it its own back.

    Args:
        model: A transformers model.
        name: To register the attention under.
        forward: The attention, as transformers calls it.
        masks_of: The registered attention whose masks it takes.

    Raises:
        UnsupportedModelError: The model takes no other attention than its own.
    """
    register()
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, AttentionMaskInterface()[masks_of])
    with attention_of(model, name, "be observed"):
        yield


def context_length(model: Any) -> int:
    """Returns the longest row that the model was made for, in tokens; `sys.maxsize` where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def compute_of(model: Any) -> dict[str, str]:
    """Returns `device` and `dtype`, as results name them."""
    return {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}


def versions() -> dict[str, str]:
    """Returns the versions that a result names."""
    found = {"python": platform.python_version()}
    return found | {name: installed_version(name) or "unknown" for name in ("misotune", "torch", "transformers")}
