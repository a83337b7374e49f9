"""Runs a model with another attention than its own for a while."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from misotune.errors import UnsupportedModelError


@contextmanager
def attention_of(model: Any, name: str, what: str) -> Generator[None]:
    """Runs a model with an attention that transformers knows by `name`, and gives it its own back.

    Args:
        model: A transformers model.
        name: As it was registered.
        what: What the model cannot do without it, for the error.

    Raises:
        UnsupportedModelError: The model takes no other attention than its own.
    """
    config = model.config
    before = {"": config._attn_implementation}
    for part in config.sub_configs:
        if getattr(config, part, None) is not None:
            before[part] = getattr(config, part)._attn_implementation
    try:
        model.set_attn_implementation(name)
        if config.get_text_config()._attn_implementation != name:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not take its attention from transformers' AttentionInterface, "
                f"so it cannot {what}"
            )
        yield
    finally:
        model.set_attn_implementation(before)
