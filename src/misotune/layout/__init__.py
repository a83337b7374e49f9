"""From samples to packed rows of tokens: rendering with the model's own template, positions, labels, packing.

encode_sample     a multi-input sample as token ids, with the response's span proved
join_samples      the rows of a mixture's chunk as one causal text
Chunking          cuts an input into successive chunks (succ)
RowLayout         where the samples of a packed row lie, and each token's position
build_row         encoded samples -> one packed row, ready for model.forward
pack              which samples share a row (best-fit decreasing)
spread            the same for a given number of rows, which come to be of about one length
"""

from misotune.layout.chunks import Chunking, draw_chunks
from misotune.layout.encoding import EncodedSample, encode_sample
from misotune.layout.joining import join_samples
from misotune.layout.packing import pack, spread
from misotune.layout.row import PackedRow, RowLayout, build_row
from misotune.layout.template import ChatTemplate

__all__ = [
    "ChatTemplate",
    "Chunking",
    "EncodedSample",
    "PackedRow",
    "RowLayout",
    "build_row",
    "draw_chunks",
    "encode_sample",
    "join_samples",
    "pack",
    "spread",
]
