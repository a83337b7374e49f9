"""Response text as it comes."""

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer


class TextCallback(TextStreamer):
    """A transformers streamer that hands on the response's text, word by word, and nothing of the inputs.

    Args:
        tokenizer: The model's tokenizer.
        on_text: Called with each piece of text.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands on a piece of text."""
        if text:
            self._on_text(text)
