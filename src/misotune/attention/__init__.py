"""MISO attention: every input is attended to on its own, and the output's attention results are fused.

Legend of axes used throughout: T tokens of a packed row, H query heads, K key-value heads, D head size,
N inputs of a sample.

    reference_attention   the paper's equations 3, 4 and 7 to the letter: slow, exact, any device
    miso_attention        the same function, fast: two attention calls and one merge
    register              makes both available to transformers models, as attn_implementation="miso"
    check_model           refuses, by name, models for which MISO attention would not be exact
"""

from misotune.attention.fused import miso_attention
from misotune.attention.model import ATTENTION_NAME, MisoArguments, check_model, register
from misotune.attention.reference import reference_attention
from misotune.attention.spans import PackedLayout, SampleSpans, Span
from misotune.attention.weighting import WEIGHTINGS

__all__ = [
    "ATTENTION_NAME",
    "WEIGHTINGS",
    "MisoArguments",
    "PackedLayout",
    "SampleSpans",
    "Span",
    "check_model",
    "miso_attention",
    "reference_attention",
    "register",
]
