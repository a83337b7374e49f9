"""Which attention calls a packed row needs: made once a row, used by every layer.

Whatever the number of samples and inputs, a row is two calls:

    segments   causal self-attention of every segment (a sample with one input is one segment)
    pairs      each output over its inputs, group by group, not causal

The output's keys are never repeated, and the query-key products are at most those of one causal call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from misotune.attention.spans import PackedLayout, SampleSpans, Span
from misotune.attention.weighting import WEIGHTINGS, Fusion, require_weighting

TokenIndex = slice | Tensor


class Block(NamedTuple):
    """Queries that read one run of keys; the last query stands beside the last key, where that matters.

    Attributes:
        queries: In the tokens of q.
        keys: In the tokens of k and v.
        left: Keys further than this to the left of a query's own are not read; None: all are. A negative
            number leaves the last queries without any key.
    """

    queries: Span
    keys: Span
    left: int | None = None


@dataclass(frozen=True, eq=False)
class Blocks:
    """One attention call: its result holds the blocks' queries one after the other, R rows in all.

    Attributes:
        items: The blocks.
        is_causal: No query reads a key to the right of its own.
        parts: The rows as stacks of the same queries; empty: every query has one row.
    """

    items: tuple[Block, ...]
    is_causal: bool
    parts: tuple["Stack", ...] = ()

    @cached_property
    def rows(self) -> tuple[Span, ...]:
        """Where each block's queries lie in the result."""
        stops = list(accumulate(len(block.queries) for block in self.items))
        return tuple(Span(stop - len(block.queries), stop) for block, stop in zip(self.items, stops, strict=True))

    @property
    def num_rows(self) -> int:
        """R, the rows of the result."""
        return self.rows[-1].stop if self.rows else 0

    @property
    def stacks(self) -> tuple["Stack", ...]:
        """All rows, as stacks in each of which the same queries recur."""
        return self.parts or (Stack(slice(0, self.num_rows), 1, self.queries),)

    @cached_property
    def queries(self) -> "Gather":
        """The blocks' queries."""
        return Gather(tuple(block.queries for block in self.items))

    @cached_property
    def keys(self) -> "Gather":
        """The blocks' keys; no key is in two blocks."""
        return Gather(tuple(block.keys for block in self.items))


@dataclass(frozen=True, eq=False)
class Gather:
    """Runs of tokens taken one after the other."""

    spans: tuple[Span, ...]
    _on_device: dict[torch.device, tuple[TokenIndex, Tensor]] = field(default_factory=lambda: {}, repr=False)

    @property
    def longest(self) -> int:
        """Tokens of the longest run."""
        return max(map(len, self.spans))

    def index(self, device: torch.device) -> TokenIndex:
        """Returns the tokens as an index: a slice if they lie side by side."""
        return self._get(device)[0]

    def boundaries(self, device: torch.device) -> Int[Tensor, "B"]:
        """Returns where each run begins and ends among the gathered tokens, as variable-length kernels want it."""
        return self._get(device)[1]

    def take(self, x: Tensor) -> Tensor:
        """Returns the tokens of x along its first axis; a view if they lie side by side."""
        return x[self.index(x.device)]

    def _get(self, device: torch.device) -> tuple[TokenIndex, Tensor]:
        if device not in self._on_device:
            stops = [0, *accumulate(map(len, self.spans))]
            boundaries = torch.tensor(stops, dtype=torch.int32, device=device)
            self._on_device[device] = (_token_index(self.spans, device), boundaries)
        return self._on_device[device]


class Stack(NamedTuple):
    """Rows of a result in which the same queries recur: `height` times all of them, one after the other."""

    rows: slice
    height: int
    queries: Gather

    def view(self, x: Tensor) -> Tensor:
        """Returns the rows of x (R, ...) as a view (height, T, ...)."""
        rows = x[self.rows]
        return rows.view(self.height, len(rows) // self.height, *x.shape[1:])


@dataclass(frozen=True, eq=False)
class FusedOutputs:
    """The outputs of all samples that are fused from the same number of groups, Y tokens in all.

    Attributes:
        stack: Their tokens in q and their rows in the result of the pairs: groups x joined x Y.
        num_groups: Groups of each sample.
        log_weights: Each group's weight.
        log_copies: How often the output's own keys count.
    """

    stack: Stack
    num_groups: int
    log_weights: Float[Tensor, "G Y"]
    log_copies: Float[Tensor, "Y"]
    _on_device: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=lambda: {}, repr=False
    )

    @property
    def num_joined(self) -> int:
        """Blocks that make up a group; one unless a window parts them."""
        return self.stack.height // self.num_groups

    def logs(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `log_weights` and `log_copies` in the type and on the device of the log-sum-exps."""
        key = (lse.device, lse.dtype)
        if key not in self._on_device:
            self._on_device[key] = self.log_weights.to(lse), self.log_copies.to(lse)
        return self._on_device[key]


@dataclass(frozen=True, eq=False)
class RowPlan:
    """The calls of a row, and how the results of the second are fused into those of the first."""

    segments: Blocks
    pairs: Blocks
    fused: tuple[FusedOutputs, ...]

    @property
    def keeps_pairs(self) -> bool:
        """Whether any output is a mean over several groups, whose results the backward pass needs apart."""
        return any(outputs.num_groups > 1 for outputs in self.fused)


def plan_row(
    layout: PackedLayout, weighting: str, *, num_queries: int | None = None, window: int | None = None
) -> RowPlan:
    """Returns the plan of a row.

    Args:
        layout: Where the samples lie.
        weighting: A name in `WEIGHTINGS`.
        num_queries: Only the row's last tokens are queries (decoding with cached keys); None: all are.
        window: Sliding window of the layer: a query reads this many keys of its pair, its own included.

    Raises:
        ValueError: An unknown weighting, or queries that begin in the middle of an input.
    """
    require_weighting(weighting)
    num_tokens = layout.samples[-1].whole.stop if layout.samples else 0
    first_query = 0 if num_queries is None else num_tokens - num_queries
    segments: list[Block] = []
    fusions: dict[tuple[int, int], list[tuple[Span, list[Block], Fusion]]] = {}
    for sample in layout.samples:
        if sample.whole.stop <= first_query:
            continue
        segments.extend(_segment_blocks(sample, first_query, window))
        if len(sample.inputs) > 1 and len(sample.output):
            fusion = WEIGHTINGS[weighting](sample)
            queries = _queries(sample.output, first_query)
            blocks, num_joined = _pair_blocks(sample, queries, fusion, window)
            fusions.setdefault((len(fusion.groups), num_joined), []).append((queries, blocks, fusion))
    pairs: list[Block] = []
    fused: list[FusedOutputs] = []
    num_rows = 0
    for (num_groups, num_joined), members in fusions.items():
        # Group by group, so that the result is a stack of equal parts, each holding all of these outputs.
        pairs.extend(block for stack in zip(*(blocks for _, blocks, _ in members), strict=True) for block in stack)
        outputs = _fused_outputs(members, num_groups, num_joined, num_rows)
        fused.append(outputs)
        num_rows = outputs.stack.rows.stop
    calls = Blocks(tuple(segments), True), Blocks(tuple(pairs), False, tuple(outputs.stack for outputs in fused))
    return RowPlan(*calls, tuple(fused))


def _segment_blocks(sample: SampleSpans, first_query: int, window: int | None) -> list[Block]:
    # With one input the pair is all there is: [x_1 ; y] is one plain causal segment, as in SFT.
    spans = (*sample.inputs, sample.output) if len(sample.inputs) > 1 else (sample.whole,)
    blocks: list[Block] = []
    for span in spans:
        if len(span) and span.stop > first_query:
            left = None if window is None or window >= len(span) else window - 1
            blocks.append(Block(_queries(span, first_query), span, left))
    return blocks


def _pair_blocks(sample: SampleSpans, queries: Span, fusion: Fusion, window: int | None) -> tuple[list[Block], int]:
    """Returns the output's blocks over its inputs, and how many make up a group."""
    longest = max(len(x) for x in sample.inputs)
    if window is None or longest + len(sample.output) <= window:
        # All inputs of a group lie side by side: one softmax over all of them is one block.
        return [Block(queries, Span(group[0].start, group[-1].stop)) for group in fusion.groups], 1
    # Output token t reads the window - 1 - t last keys of each input. Beside the last key of the block stands
    # the last query, len(output) - 1, so `left` falls short by the output's length.
    left = window - 1 - len(sample.output)
    parts = [x for group in fusion.groups for x in group]
    return [Block(queries, _last_keys(x, window - 1), left) for x in parts], len(fusion.groups[0])


def _last_keys(span: Span, count: int) -> Span:
    return Span(max(span.start, span.stop - max(count, 1)), span.stop)


def _fused_outputs(
    members: Sequence[tuple[Span, list[Block], Fusion]], num_groups: int, num_joined: int, first_row: int
) -> FusedOutputs:
    lengths = torch.tensor([len(queries) for queries, _, _ in members])
    weights = torch.tensor([fusion.weights for _, _, fusion in members], dtype=torch.float64)
    copies = torch.tensor([fusion.output_copies for _, _, fusion in members], dtype=torch.float64)
    height = num_groups * num_joined
    rows = slice(first_row, first_row + height * int(lengths.sum()))
    return FusedOutputs(
        stack=Stack(rows, height, Gather(tuple(queries for queries, _, _ in members))),
        num_groups=num_groups,
        log_weights=weights.log().repeat_interleave(lengths, dim=0).T.contiguous(),
        log_copies=copies.log().repeat_interleave(lengths),
    )


def _queries(span: Span, first_query: int) -> Span:
    """A span's tokens among the queries, which begin at token `first_query` of the row."""
    return Span(max(span.start - first_query, 0), span.stop - first_query)


def _token_index(spans: Sequence[Span], device: torch.device) -> TokenIndex:
    if all(a.stop == b.start for a, b in pairwise(spans)):
        return slice(spans[0].start, spans[-1].stop)
    return torch.cat([torch.arange(*span) for span in spans]).to(device)
