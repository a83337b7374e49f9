"""How the losses of trained tokens are computed: from all their logits, or from those of a few tokens at a time.

A vocabulary of 128,000 makes half a megabyte of float32 logits a token, held several times over in training: in a
row of 4,096 trained tokens more than the weights of a small model. Chunked, the logits of some tokens are made,
turned into losses and dropped, and made again in the backward pass. This happens inside the call of the output
head itself, so that whatever surrounds that call (ZeRO-3's gathering, DDP's hooks, autocast) stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from misotune.errors import RunError, UsageError
from misotune.training.liger import check_liger, liger_losses
from misotune.training.loss import token_losses

Kind = Literal["plain", "chunked", "liger"]

# Logits in one chunk: 256 MiB in float32.
CHUNK_LOGITS = 2**26
# Tokens of the first micro-batch that are compared with the plain loss.
_NUM_COMPARED = 256
# Largest relative difference to the plain loss and gradient. The same sums in another order make 1e-6 in float32;
# in bfloat16 one rounding of a logit moves a token's loss by up to 2^-8 of the logit.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}

_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_SCALES = ("logits_scaling", "logit_scale", "output_multiplier")


class Comparison(NamedTuple):
    """The first micro-batch, against the plain loss.

    Attributes:
        loss: Relative difference of the token losses (norm by norm).
        gradient: Likewise of the gradient of the head's input.
        is_unchanged: False when the model alters what its head returns.
        tolerance: The largest difference that passes.
    """

    loss: float
    gradient: float
    is_unchanged: bool
    tolerance: float

    @property
    def problem(self) -> str | None:
        """What forbids this cross-entropy, or None."""
        if not self.is_unchanged:
            return "the model changes its logits after the output head"
        for what, difference in (("losses", self.loss), ("gradient", self.gradient)):
            if not difference <= self.tolerance:
                return f"{what} differ from the plain loss by {difference:.1e} (relative; {self.tolerance:.0e} passes)"
        return None


def chunk_tokens(vocab_size: int) -> int:
    """Returns how many tokens' logits are held at a time."""
    return max(64, CHUNK_LOGITS // vocab_size)


def choose_cross_entropy(name: str, config: Any, *, has_cuda: bool) -> tuple[Kind, str]:
    """Returns the kind of cross-entropy that training takes, and a wording of it for the plan.

    Args:
        name: `auto`, `plain`, `chunked` or `liger`.
        config: The model's configuration.
        has_cuda: Whether the run is on a CUDA device.

    Raises:
        UsageError: The kind is asked for by name, and cannot be had.
    """
    if name == "plain" or (name == "auto" and not has_cuda):
        return "plain", "plain"
    change = _known_change(config.get_text_config(decoder=True))
    if name == "auto":
        return ("plain", f"plain, since {change}") if change else ("chunked", "chunked")
    if change:
        raise UsageError(f"train.cross_entropy: '{name}' cannot be used: {change}; use 'auto' or 'plain'")
    if name == "liger":
        check_liger("train.cross_entropy: 'liger'", has_cuda=has_cuda)
        return "liger", "liger"
    return "chunked", "chunked"


def _known_change(config: Any) -> str | None:
    """Returns what a configuration says is done to logits after the head, in words."""
    changes = [(name, getattr(config, name, None), None) for name in _CAPS]
    changes += [(name, getattr(config, name, 1), 1) for name in _SCALES]
    changes.append(("unpadded_vocab_size", getattr(config, "unpadded_vocab_size", None), None))
    for name, value, neutral in changes:
        if value is not None and value != neutral:
            return f"{config.model_type} changes its logits after the output head ({name} {value:g})"
    return None


class CrossEntropy:
    """Calls a model, and returns the losses of its trained tokens.

    Until the first call of a kind other than plain has been compared with the plain loss, on all ranks together,
    nothing is trained with it: a model that alters its logits after the head, or a kernel that is wrong, is found.

    Args:
        model: The model with its adapter, before any wrapper.
        kind: As `choose_cross_entropy` returned it.
        is_required: It was asked for by name: a difference is an error. Else the plain loss takes over.
        on_event: Called with (`start` or `warning`, a sentence) after the comparison.
        chunk: Tokens a chunk; None: as many as `chunk_tokens` says.
    """

    def __init__(
        self,
        model: Any,
        kind: Kind,
        *,
        is_required: bool = True,
        on_event: Callable[[Literal["start", "warning"], str], None] | None = None,
        chunk: int | None = None,
    ) -> None:
        self.kind: Kind = kind
        self.is_required = is_required
        self.on_event = on_event or (lambda kind, text: None)
        self.comparison: Comparison | None = None
        self._head = _LossHead(model, kind, chunk) if kind != "plain" else None

    def __call__(self, model: Any, arguments: Mapping[str, Any], targets: Int[Tensor, "P"]) -> Float[Tensor, "P"]:
        """Returns the losses of the trained tokens, in float32.

        Args:
            model: The model, or what wraps it.
            arguments: Of its forward call; `logits_to_keep` are the predictors.
            targets: The trained token ids.

        Raises:
            RunError: At the first call, the losses are not the plain ones, and the kind was asked for by name.
        """
        if self._head is not None and self.comparison is None:
            self._compare(model, arguments, targets)
        if self._head is None:
            return token_losses(model(**arguments, use_cache=False).logits, targets)
        return self._head.losses(model, arguments, targets)

    def _compare(self, model: Any, arguments: Mapping[str, Any], targets: Tensor) -> None:
        assert self._head is not None
        self.comparison = found = compare_with_plain(self._head, model, arguments, targets)
        if not found.problem:
            text = (
                f"cross-entropy {self.kind}: on the first row, losses differ from the plain ones by "
                f"{found.loss:.1e} and the gradient by {found.gradient:.1e} (relative; {found.tolerance:.0e} passes)"
            )
            self.on_event("start", text)
            return
        if self.is_required:
            raise RunError(f"train.cross_entropy: '{self.kind}' cannot be used: {found.problem}; use 'auto' or 'plain'")
        self._head.restore()
        self._head, self.kind = None, "plain"
        self.on_event("warning", f"cross-entropy plain, since {found.problem}")


class _LossHead:
    """An output head whose `forward` returns token losses (1, P, 1) while it knows the targets, else logits."""

    def __init__(self, model: Any, kind: Kind, chunk: int | None) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise UsageError(f"train.cross_entropy: {type(model).__name__} names no output head; use 'plain'")
        self.module: nn.Module = head
        self.kind: Kind = kind
        self.chunk = chunk
        self.targets: Tensor | None = None
        self.returned: Tensor | None = None
        self.dtype = torch.float32
        self.gradient_difference = 0.0
        self.is_comparing = False
        self._forward = head.forward
        head.forward = self._call

    def restore(self) -> None:
        """Gives the head its own `forward` back."""
        self.module.forward = self._forward

    def losses(self, model: Any, arguments: Mapping[str, Any], targets: Tensor) -> Tensor:
        """Returns the token losses by a call of the whole model."""
        self.targets, self.returned = targets, None
        try:
            logits = model(**arguments, use_cache=False).logits
        finally:
            self.targets = None
        if self.returned is None or logits.shape[-1] != 1:
            return logits.new_full(targets.shape, torch.nan)  # the head was not called, or its result made larger
        return logits[0, :, 0].float()

    def _call(self, hidden: Float[Tensor, "1 P H"], *args: Any, **kwargs: Any) -> Tensor:
        if self.targets is None:
            return self._forward(hidden, *args, **kwargs)
        if self.is_comparing:
            self.dtype = _compute_dtype(hidden)
            self.gradient_difference = self._compare_gradient(hidden, self.targets)
        losses = self._losses(hidden, self.targets)
        self.returned = losses.detach()
        return losses[None, :, None]

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        module: Any = self.module
        # A third of the tokens compared, so that the comparison has several chunks.
        chunk = -(-len(targets) // 3) if self.is_comparing else self.chunk
        # With a trained row (peft), the weights of the head are not all in `weight`.
        if self.kind == "liger" and not hasattr(module, "token_adapter"):
            return liger_losses(hidden[0], module.weight, module.bias, targets)
        if type(module) is nn.Linear:
            dtype = _compute_dtype(hidden)
            chunk = chunk or chunk_tokens(len(module.weight))
            return _ChunkedLosses.apply(hidden[0], module.weight, module.bias, targets, max(chunk, 1), dtype)
        return _checkpointed_losses(self._forward, hidden, targets, max(chunk or chunk_tokens(_width(module)), 1))

    def _compare_gradient(self, hidden: Tensor, targets: Tensor) -> float:
        """Returns the relative difference of the head's input's gradient; here ZeRO-3 has gathered the weights."""
        with torch.enable_grad():
            inputs = [hidden.detach().requires_grad_() for _ in range(2)]
            losses = self._losses(inputs[0], targets), token_losses(self._forward(inputs[1]), targets)
            # Tokens that weigh differently: a gradient that loses the upstream one is found.
            upstream = torch.linspace(0.5, 1.5, len(targets), device=hidden.device)
            ours, plain = (torch.autograd.grad(y, x, upstream)[0] for y, x in zip(losses, inputs, strict=True))
        return _relative_difference(ours, plain)


def compare_with_plain(
    head: _LossHead, model: Any, arguments: Mapping[str, Any], targets: Int[Tensor, "P"]
) -> Comparison:
    """Returns how a head's losses compare with the plain ones on some tokens of a micro-batch, over all ranks.

    The model runs twice without gradients and dropout, on at most 256 of the trained tokens.
    """
    chosen = torch.linspace(0, len(targets) - 1, min(len(targets), _NUM_COMPARED), device=targets.device).long()
    some = {**arguments, "logits_to_keep": arguments["logits_to_keep"][chosen]}
    was_training = model.training
    model.eval()
    head.is_comparing = True
    try:
        with torch.no_grad():
            plain = token_losses(model(**some, use_cache=False).logits, targets[chosen])
            losses = head.losses(model, some, targets[chosen])
    finally:
        head.is_comparing = False
        model.train(was_training)
    is_unchanged = head.returned is not None and torch.allclose(losses, head.returned, rtol=0, atol=0, equal_nan=True)
    worst = torch.tensor(
        [_relative_difference(losses, plain), head.gradient_difference, float(not is_unchanged)],
        device=losses.device,
    )
    # A rank whose micro-batch trains nothing compares nothing: all take the others' verdict.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return Comparison(float(worst[0]), float(worst[1]), not worst[2], _TOLERANCES[head.dtype])


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference by that of what was expected; numbers that are not finite say nothing.

    A poisoned model is no fault of the cross-entropy: the run's own guard names its rows.
    """
    if not len(expected) or not expected.isfinite().all():
        return 0.0
    difference = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12)
    return float(difference.nan_to_num(nan=torch.inf, posinf=torch.inf))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Returns the format that a matrix product of `hidden` is computed in."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _width(head: Any) -> int:
    """Returns the size of the vocabulary of any kind of head."""
    return getattr(head, "out_features", None) or len(head.weight)


def _parts(num_tokens: int, chunk: int) -> Iterator[slice]:
    """Yields the chunks; one empty one where there are no tokens, so that every weight has its gradient."""
    for start in range(0, max(num_tokens, 1), chunk):
        yield slice(start, min(start + chunk, num_tokens))


class _ChunkedLosses(torch.autograd.Function):
    """Token losses of a linear head, chunk by chunk: d loss / d logits is softmax(logits) - onehot(target).

    Beside a chunk's logits, the backward pass holds the weight's gradient once, added up in float32 over several
    chunks; autograd's own sum over chunks would hold it twice, and round it after each where weights are bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        """Returns the losses (P) of hidden (P, H), weight (V, H) and bias (V), computed in `dtype`."""
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk, ctx.dtype = chunk, dtype
        matrix, offset = _in_format(weight, bias, dtype)
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for part in _parts(len(targets), chunk):
            logits = functional.linear(hidden[part].to(dtype), matrix, offset)
            losses[part] = functional.cross_entropy(logits.float(), targets[part], reduction="none")
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the gradients of hidden, weight and bias; those that nobody needs are not computed."""
        hidden, weight, bias, targets = ctx.saved_tensors
        matrix, offset = _in_format(weight, bias, ctx.dtype)
        parts = list(_parts(len(targets), ctx.chunk))
        sums = torch.float32 if len(parts) > 1 else ctx.dtype
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=sums) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for part in parts:
            inputs = hidden[part].to(ctx.dtype)
            logits = functional.linear(inputs, matrix, offset)
            slope = torch.softmax(logits, dim=-1, dtype=torch.float32)
            del logits
            slope[torch.arange(len(slope), device=slope.device), targets[part]] -= 1
            slope *= upstream[0][part, None]
            if d_bias is not None:
                d_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[part] = slope @ matrix
            if d_weight is not None:
                _add_product(d_weight, slope.T, inputs)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _in_format(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _checkpointed_losses(
    forward: Callable[[Tensor], Tensor], hidden: Float[Tensor, "1 P H"], targets: Int[Tensor, "P"], chunk: int
) -> Float[Tensor, "P"]:
    """Returns the losses of any head, such as one with an adapter; its forward runs again in the backward pass."""

    def losses_of(inputs: Tensor, wanted: Tensor) -> Tensor:
        return token_losses(forward(inputs), wanted)

    return torch.cat(
        [
            checkpoint(losses_of, hidden[:, part], targets[part], use_reentrant=False)
            if torch.is_grad_enabled()
            else losses_of(hidden[:, part], targets[part])
            for part in _parts(len(targets), chunk)
        ]
    )
