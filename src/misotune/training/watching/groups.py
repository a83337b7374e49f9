"""The loss by source, by role and by number of inputs: the run's one loss, taken apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from misotune.layout import EncodedSample
from misotune.training.batches import MicroBatches

# How many groups of a kind are told apart; the others count as one.
_MOST_SOURCES = 12
_MOST_INPUTS = 8

OTHER_SOURCES = "(others)"
NO_SOURCE = "(not named)"


@dataclass(frozen=True, slots=True)
class GroupLoss:
    """The loss of one group since the last line.

    Attributes:
        loss: Mean of its trained tokens, weighted as in the run's loss.
        share: What part of the run's loss it makes up, 0 to 1. Over the groups of a kind, the sum of
            `share * loss` is the run's loss.
        tokens: Its trained tokens.
    """

    loss: float
    share: float
    tokens: int


class GroupLosses:
    """Sums the losses of trained tokens by group, over micro-batches, steps and ranks.

    A kind of group is left out where all samples belong to the same one.

    Args:
        micro_batches: The run's micro-batches.
        by_role: Whether to tell roles apart: in mode flat, where each sample has one input.
    """

    def __init__(self, micro_batches: MicroBatches, *, by_role: bool) -> None:
        self._micro_batches = micro_batches
        samples = micro_batches.samples
        counts = samples.count_by_source()
        known = sorted(counts, key=lambda name: (-counts[name], name))
        named = {name: name or NO_SOURCE for name in known[:_MOST_SOURCES]}
        self._sources = {name: named.get(name, OTHER_SOURCES) for name in known}
        chunking = micro_batches.chunking
        # An input of fewer tokens than chunks are drawn gets as many chunks as it has tokens.
        numbers = range(1, max(chunking.probabilities) + 1) if chunking else np.unique(samples.num_inputs).tolist()
        kinds = {
            "source": list(dict.fromkeys(self._sources.values())),
            "role": list(samples.roles) if by_role else [],
            "inputs": list(dict.fromkeys(map(_inputs_name, numbers))),
        }
        self._kinds = {kind: names for kind, names in kinds.items() if len(names) > 1}
        groups = [(kind, name) for kind, names in self._kinds.items() for name in names]
        self._index = {group: at for at, group in enumerate(groups)}
        self._sums: Tensor | None = None

    def observe(self, batch: Mapping[str, Any], losses: Tensor) -> None:
        """Adds the losses of a micro-batch: an observer of `MisoTrainer`.

        Args:
            batch: An item of `MicroBatches`.
            losses: Of its trained tokens, in order.
        """
        if self._sums is None:
            # Sums of a run's many small numbers; MPS has no float64.
            kind = torch.float32 if losses.device.type == "mps" else torch.float64
            self._sums = torch.zeros(len(self._index), 3, dtype=kind, device=losses.device)
        if not self._index or not len(losses):
            return
        members = self._micro_batches.members(batch["index"])
        parts = [part for sample in members for part in self._parts(sample)]
        numbers = [number for number, _ in parts]
        index = torch.as_tensor(np.repeat([groups for _, groups in parts], numbers, axis=0))  # [P, kinds]
        index = index.to(losses.device, non_blocking=True)
        weights = batch["target_weights"]
        ones = torch.ones_like(losses, dtype=self._sums.dtype)
        shares = (ones if weights is None else weights.to(ones)) / batch["num_trained_in_step"]
        rows = torch.stack([shares * losses.to(ones), shares, ones], dim=1)
        for column in index.unbind(1):
            self._sums.index_add_(0, column, rows)

    def take(self) -> dict[str, dict[str, GroupLoss]]:
        """Returns kind -> group -> loss of what was observed since the last call, over all ranks.

        Every rank must call it at the same step: the ranks' sums are added up. A kind's groups without a trained
        token are left out.
        """
        if not self._index:
            return {}
        assert self._sums is not None, "a micro-batch was observed, if only one that trains nothing"
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)
        sums = self._sums.tolist()
        self._sums.zero_()
        taken: dict[str, dict[str, GroupLoss]] = {}
        for kind, names in self._kinds.items():
            rows = {name: sums[self._index[kind, name]] for name in names}
            total = sum(weight for _, weight, _ in rows.values())
            taken[kind] = {
                name: GroupLoss(loss / weight, weight / total, round(tokens))
                for name, (loss, weight, tokens) in rows.items()
                if tokens
            }
        return taken

    def _parts(self, sample: EncodedSample) -> Sequence[tuple[int, list[int]]]:
        """Returns (trained tokens, groups) of each instruction of a sample, in the order of its tokens."""
        return [
            (int(number), [self._index[kind, self._group(kind, sample, source)] for kind in self._kinds])
            for number, source in zip(sample.num_trained_by_instruction, sample.sources, strict=True)
        ]

    def _group(self, kind: str, sample: EncodedSample, source: str) -> str:
        if kind == "source":
            return self._sources[source]
        return sample.roles[0] if kind == "role" else _inputs_name(len(sample.inputs))


def _inputs_name(number: int) -> str:
    return str(number) if number <= _MOST_INPUTS else f"over {_MOST_INPUTS}"
