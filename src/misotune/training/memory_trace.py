"""What one forward and backward pass holds in memory, found without weights and without computing anything.

The model is built of fake tensors, which have shapes but no numbers, and runs a row as training would: autocast,
gradient checkpointing, adapters, MISO attention's own kernel. Beneath it every operator is seen, and of every piece of
memory when it comes and when it goes.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from misotune.attention import MisoArguments
from misotune.training.batches import NOT_FOR_THE_MODEL
from misotune.training.cross_entropy import Comparison, CrossEntropy, Kind
from misotune.training.heap import Heap

WEIGHTS, GRADIENTS, ACTIVATIONS, LOGITS = "weights", "gradients", "activations", "logits"


@dataclass(frozen=True, slots=True)
class Traced:
    """What a pass holds, in bytes.

    Attributes:
        num_parameters: Weights of the model, tied ones once.
        num_trained: Those that are trained.
        weights: All weights as they are stored.
        peak: The components at the moment at which the pass holds most. `weights` has the copies that autocast makes
            of them too, `logits` all from the language-model head to the loss and back.
        gaps: On the CPU, by how much the most that the allocator holds of the system's memory is more than that.
        most_activations: The most that activations and logits come to, at whatever moment.
        logits_then: What of `most_activations` is logits.
    """

    num_parameters: int
    num_trained: int
    weights: int
    peak: dict[str, int]
    gaps: int
    most_activations: int
    logits_then: int


class UntraceableError(Exception):
    """A model does something that depends on the numbers; the message says what."""


def trace_pass(
    make_model: Callable[[], nn.Module],
    batch: Mapping[str, Any],
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    cross_entropy: Kind,
    keeps_gradients: bool,
    windows: Iterable[int | None] = (None,),
) -> Traced:
    """Returns what a row's forward and backward pass holds.

    Args:
        make_model: Builds the model as it is trained, with adapters and checkpointing; called on the meta device.
        batch: The row, an item of `MicroBatches`.
        device: Where it would run.
        autocast: The format of autocast; None: without.
        cross_entropy: How the losses are computed.
        keeps_gradients: Whether gradients of an earlier micro-batch are there already.
        windows: The sliding windows of the model's layers; None: a layer without.

    Raises:
        UntraceableError: The pass cannot be followed; with the reason.
    """
    # Its import takes a tenth of a second, and is for the plan alone.
    from torch._subclasses.fake_tensor import FakeTensorMode

    miso: MisoArguments = batch["miso"]
    for window in windows:  # made of true numbers: they depend on the layout alone
        miso.plan(miso.num_tokens, window)
    ledger = _Ledger(Heap() if device.type == "cpu" else None)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # training itself builds the model again, and may warn
            model = make_model()
        with FakeTensorMode(allow_non_fake_inputs=True), ledger:
            _give_fake_weights(model, device)
            model.train()
            for weight in model.parameters():
                ledger.tag(weight, WEIGHTS)
            num_bytes = ledger.live[WEIGHTS]
            row = {
                key: torch.empty_like(value, device=device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            if keeps_gradients:
                for weight in trained:
                    weight.grad = torch.empty_like(weight)
                    ledger.tag(weight.grad, GRADIENTS)
            losses_of = CrossEntropy(model, cross_entropy)
            losses_of.comparison = Comparison(0.0, 0.0, True, 0.0)  # nothing here has numbers to compare
            ledger.begin()
            with ExitStack() as hooks:
                _watch(model, trained, ledger, hooks)
                _loss(model, losses_of, row, device, autocast).backward()
            numbers = sum(weight.numel() for weight in model.parameters()), sum(weight.numel() for weight in trained)
    except Exception as error:  # whatever a model's code may raise when its tensors have no numbers
        raise UntraceableError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    finally:
        ledger.close()
    return Traced(
        *numbers,
        num_bytes,
        ledger.peak,
        max(0, ledger.most_held - sum(ledger.peak.values())),
        sum(ledger.most),
        ledger.most[1],
    )


def _give_fake_weights(model: nn.Module, device: torch.device) -> None:
    """Puts a model of the meta device on a device, in a fake mode; tied weights stay one.

    It is built on the meta device since peft moves adapters, which fake weights do not bear.
    """
    made: dict[int, torch.Tensor] = {}

    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_weight else empty
        return made[id(tensor)]

    for module in model.modules():
        holders: Any = (module._parameters, module._buffers)
        for tensors in holders:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = on_device(tensor)


def _loss(
    model: nn.Module, losses_of: CrossEntropy, row: dict[str, Any], device: torch.device, autocast: torch.dtype | None
) -> torch.Tensor:
    """Returns the loss as the trainer computes it."""

    def call(**arguments: Any) -> Any:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            outputs = model(**arguments)
        if autocast is not None:
            outputs.logits = outputs.logits.float()  # accelerate makes outputs float32
        return outputs

    arguments = {key: value for key, value in row.items() if key not in NOT_FOR_THE_MODEL}
    return losses_of(call, arguments, row["targets"]).sum()


class _Ledger(TorchDispatchMode):
    """Follows every storage from the operator that makes it to its end, under the name of a component."""

    def __init__(self, heap: Heap | None) -> None:
        super().__init__()
        self.region = ACTIVATIONS
        self.live: dict[str, int] = dict.fromkeys((WEIGHTS, GRADIENTS, ACTIVATIONS, LOGITS), 0)
        self.head_shapes: set[tuple[int, ...]] = set()
        self.most = (0, 0)
        self.peak = dict(self.live)
        self.most_held = 0
        self._heap = heap
        self._before = 0
        self._has_begun = False
        self._entries: dict[int, tuple[str, int, int | None]] = {}
        self._ends: list[weakref.finalize] = []

    def begin(self) -> None:
        """Begins to look for the peak; what is there already stays where it is."""
        self._has_begun, self._before = True, sum(self.live.values())
        self.peak = dict(self.live)

    def tag(self, tensor: torch.Tensor, component: str) -> None:
        """Puts a tensor's memory under the name of a component."""
        key = tensor.untyped_storage()._cdata
        self._add(tensor, component)
        before, size, place = self._entries[key]
        self.live[before] -= size
        self.live[component] += size
        self._entries[key] = (component, size, place)

    def close(self) -> None:
        """Stops following what is still there."""
        for end in self._ends:
            end.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and enters what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value, self._component(func, args, value))
        return result

    def _component(self, func: Any, args: Any, made: torch.Tensor) -> str:
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], torch.Tensor):
            entry = self._entries.get(args[0].untyped_storage()._cdata)
            if entry is not None and entry[0] == WEIGHTS:
                return WEIGHTS
        return GRADIENTS if tuple(made.shape) in self.head_shapes else self.region

    def _add(self, tensor: torch.Tensor, component: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            return
        size = storage.nbytes()
        heap = self._heap if self._has_begun else None
        self._entries[key] = (component, size, None if heap is None else heap.allocate(size))
        self.live[component] += size
        self._ends.append(weakref.finalize(storage, self._drop, key))
        if self._has_begun:
            self._look_for_the_peak()

    def _look_for_the_peak(self) -> None:
        live = sum(self.live.values())
        if live > sum(self.peak.values()):
            self.peak = dict(self.live)
        self.most_held = max(self.most_held, live if self._heap is None else self._before + self._heap.held)
        if self.live[ACTIVATIONS] + self.live[LOGITS] > sum(self.most):
            self.most = (self.live[ACTIVATIONS], self.live[LOGITS])

    def _drop(self, key: int) -> None:
        component, size, place = self._entries.pop(key)
        self.live[component] -= size
        if place is None:
            self._before -= size if self._has_begun else 0
        elif self._heap is not None:
            self._heap.free(place)


def _watch(model: Any, trained: list[nn.Parameter], ledger: _Ledger, hooks: ExitStack) -> None:
    """Tells the ledger when gradients are there, and where the head begins and its backward ends."""

    def gradient_is_there(weight: torch.Tensor) -> None:
        if weight.grad is not None:
            ledger.tag(weight.grad, GRADIENTS)

    for weight in trained:
        hooks.callback(weight.register_post_accumulate_grad_hook(gradient_is_there).remove)
    head = model.get_output_embeddings()
    if head is None:
        return
    ledger.head_shapes = {tuple(head.weight.shape), tuple(reversed(head.weight.shape))}

    def enter(region: str) -> None:
        ledger.region = region

    def head_begins(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        enter(LOGITS)
        if arguments and isinstance(arguments[0], torch.Tensor) and arguments[0].requires_grad:
            arguments[0].register_hook(lambda gradient: enter(ACTIVATIONS))

    hooks.callback(head.register_forward_pre_hook(head_begins).remove)
