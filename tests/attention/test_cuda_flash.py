"""The CUDA kernel's calls, made of operators that do what torch's do: written out in float64, on the CPU.

They stand in for `aten._flash_attention_forward` and `_backward` with the same arguments, so that boundaries,
gathering, windows and the sums of gradients are checked where there is no GPU. `benchmarks/gpu/attention.sh` checks
the operators themselves.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.attention.test_agreement import LAYOUTS, make_qkv, values_and_gradients, with_weights

from misotune.attention import WEIGHTINGS, fused, miso_attention, reference_attention
from misotune.attention.kernels import CudaFlash
from misotune.layout import RowLayout


def sequences(q, k, cu_q, cu_k, max_q, max_k, is_causal, left, right):
    """Yields each sequence's queries, keys and mask, as FlashAttention aligns them: at the bottom right."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert len(cu_q) == len(cu_k)
    assert (cu_q[0], cu_k[0], cu_q[-1], cu_k[-1]) == (0, 0, len(q), len(k))
    assert (cu_q.diff().max(), cu_k.diff().max()) == (max_q, max_k)
    assert cu_q.diff().min() > 0
    assert cu_k.diff().min() > 0
    right = 0 if is_causal else right
    for i in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        num_rows, num_keys = rows.stop - rows.start, keys.stop - keys.start
        own = torch.arange(num_rows)[:, None] + num_keys - num_rows
        key = torch.arange(num_keys)
        mask = torch.ones(num_rows, num_keys, dtype=torch.bool)
        if right >= 0:
            mask &= key <= own + right
        if left >= 0:
            mask &= key >= own - left
        yield rows, keys, mask


def scores(q, k, mask, scale):
    s = torch.einsum("thd,shd->hts", q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)) * scale
    return s.masked_fill(~mask, -math.inf)


def forward(
    q, k, v, cu_q, cu_k, max_q, max_k, dropout, is_causal, debug, *, scale, window_size_left, window_size_right
):
    assert dropout == 0.0
    assert not debug
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for rows, keys, mask in sequences(q, k, cu_q, cu_k, max_q, max_k, is_causal, window_size_left, window_size_right):
        s = scores(q[rows], k[keys], mask, scale)
        values = v[keys].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        out[rows] = torch.einsum("hts,shd->thd", s.softmax(-1), values)
        lse[:, rows] = s.logsumexp(-1)
    return out, lse, None, None, None


def backward(
    grad,
    q,
    k,
    v,
    out,
    lse,
    cu_q,
    cu_k,
    max_q,
    max_k,
    dropout,
    is_causal,
    rng_state,
    unused,
    *,
    scale,
    window_size_left,
    window_size_right,
):
    """The gradients as FlashAttention's backward computes them: from the `out` and `lse` that it is given."""
    assert grad.is_contiguous()
    assert out.shape == q.shape == grad.shape
    assert lse.shape == (q.shape[1], len(q))
    copies = q.shape[1] // k.shape[1]
    grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
    for rows, keys, mask in sequences(q, k, cu_q, cu_k, max_q, max_k, is_causal, window_size_left, window_size_right):
        p = (scores(q[rows], k[keys], mask, scale) - lse[:, rows, None]).exp()
        key, value = (x[keys].repeat_interleave(copies, dim=1) for x in (k, v))
        delta = (grad[rows] * out[rows]).sum(-1).T[..., None]
        grad_s = p * (torch.einsum("thd,shd->hts", grad[rows], value) - delta) * scale
        grad_q[rows] = torch.einsum("hts,shd->thd", grad_s, key)
        for total, part, x in ((grad_k, grad_s, q), (grad_v, p, grad)):
            whole = torch.einsum("hts,thd->shd", part, x[rows])
            total[keys] = whole.unflatten(1, (-1, copies)).sum(2)
    return grad_q, grad_k, grad_v


@pytest.fixture
def cuda_flash(monkeypatch):
    """Makes every call go through the CUDA kernel; returns the calls of its operators by name."""
    calls = []

    def counted(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    operators = SimpleNamespace(
        _flash_attention_forward=counted("forward", forward), _flash_attention_backward=counted("backward", backward)
    )
    monkeypatch.setattr(fused, "select_kernel", lambda *_: CudaFlash(operators))
    return calls


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_cuda_calls_equal_the_equations(cuda_flash, lengths, weighting, heads):
    layout = with_weights(RowLayout.from_lengths(lengths))
    qkv = make_qkv(layout.num_tokens, heads)
    expected = values_and_gradients(reference_attention, layout, qkv, weighting=weighting)
    for got, want in zip(values_and_gradients(miso_attention, layout, qkv, weighting=weighting), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [3, 6, 16, 100])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_cuda_calls_equal_the_equations_in_a_window(cuda_flash, weighting, window):
    layout = RowLayout.from_lengths(LAYOUTS["two-samples"])
    qkv = make_qkv(layout.num_tokens, (6, 2))
    options = {"weighting": weighting, "window": window}
    expected = values_and_gradients(reference_attention, layout, qkv, **options)
    for got, want in zip(values_and_gradients(miso_attention, layout, qkv, **options), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_row_is_two_calls_whatever_it_holds(cuda_flash, weighting):
    lengths = [([7, 12, 5], 9), ([4], 6), ([3, 3], 2), ([5] * 16, 8), ([2, 2, 2], 1)]
    layout = RowLayout.from_lengths(lengths)
    values_and_gradients(miso_attention, layout, make_qkv(layout.num_tokens, (4, 2)), weighting=weighting)
    assert cuda_flash == ["forward", "forward", "backward", "backward"]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_samples_with_one_input_are_one_call(cuda_flash, weighting):
    layout = RowLayout.from_lengths([([7], 9), ([4], 6)])
    values_and_gradients(miso_attention, layout, make_qkv(layout.num_tokens, (4, 2)), weighting=weighting)
    assert cuda_flash == ["forward", "backward"]
