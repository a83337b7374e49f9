"""The fast path against the definition: values and every gradient, over layouts, heads and weightings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misotune.attention import WEIGHTINGS, fused, miso_attention, reference_attention
from misotune.attention.merge import BackwardValues, BlockResult, Merged, merge_uniform
from misotune.layout import RowLayout

LAYOUTS = {
    "two-samples": [([7, 12, 5], 9), ([4], 6)],
    "one-input": [([11], 5)],
    "single-tokens": [([1, 1], 1), ([1], 1), ([1, 1, 1], 2)],
    "long-output": [([3, 2], 70)],
    "many-inputs": [([5] * 16, 8)],
}
HEADS = {"mha": (4, 4), "gqa": (6, 2), "mqa": (4, 1)}

lengths = st.integers(1, 12)
rows = st.lists(st.tuples(st.lists(lengths, min_size=1, max_size=6), lengths), min_size=1, max_size=4)


def make_qkv(num_tokens, heads, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    return tuple(
        torch.randn(num_tokens, n, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (num_heads, num_kv_heads, num_kv_heads)
    )


def values_and_gradients(attention, layout, qkv, **options):
    out = attention(*qkv, layout, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)]


def assert_agree(layout, qkv, tolerance, **options):
    expected = values_and_gradients(reference_attention, layout, qkv, **options)
    got = values_and_gradients(miso_attention, layout, qkv, kernel="flash", **options)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_fast_path_equals_the_equations_in_float64(lengths, weighting, heads):
    layout = RowLayout.from_lengths(lengths)
    assert_agree(layout, make_qkv(layout.num_tokens, heads), 1e-10, weighting=weighting)


@settings(max_examples=60, deadline=None)
@given(lengths=rows, weighting=st.sampled_from(sorted(WEIGHTINGS)), heads=st.sampled_from(list(HEADS.values())))
def test_fast_path_equals_the_equations_on_any_layout(lengths, weighting, heads):
    layout = RowLayout.from_lengths(lengths)
    assert_agree(layout, make_qkv(layout.num_tokens, heads), 1e-10, weighting=weighting, scale=0.7)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_float32_stays_within_its_rounding(weighting):
    layout = RowLayout.from_lengths([([64, 96, 33], 80)])
    assert_agree(layout, make_qkv(layout.num_tokens, (6, 2), torch.float32), 2e-5, weighting=weighting)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_bfloat16_errs_no_more_than_one_causal_call(weighting):
    layout = RowLayout.from_lengths([([64, 96, 33], 80)])
    exact = make_qkv(layout.num_tokens, (6, 2))
    exact = tuple(x.detach().bfloat16().double().requires_grad_() for x in exact)
    rounded = tuple(x.detach().bfloat16().requires_grad_() for x in exact)

    def error(attention, layout, **options):
        wants = values_and_gradients(reference_attention, layout, exact, **options)
        gots = values_and_gradients(attention, layout, rounded, **options)
        return [((got - want).norm() / want.norm()).item() for got, want in zip(gots, wants, strict=True)]

    # One causal call over the same tokens is what any bfloat16 training rounds to; twice its error is room
    # for the second rounding that fusing several results has.
    causal = error(miso_attention, RowLayout.from_lengths([([layout.num_tokens - 1], 1)]))
    miso = error(miso_attention, layout, weighting=weighting)
    assert all(m <= 2 * c for m, c in zip(miso, causal, strict=True)), (miso, causal)


def test_one_input_is_plain_causal_attention():
    layout = RowLayout.from_lengths([([10], 6)])
    q, k, v = make_qkv(16, (4, 4))
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    plain = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)[0].transpose(0, 1)
    for weighting in WEIGHTINGS:
        for attention in (reference_attention, miso_attention):
            torch.testing.assert_close(attention(q, k, v, layout, weighting=weighting), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_order_of_inputs_does_not_matter(weighting):
    q, k, v = (x.detach() for x in make_qkv(28, (4, 2)))
    order = torch.cat([torch.arange(8, 20), torch.arange(8), torch.arange(20, 28)])  # swap inputs of 8 and 12
    forward = miso_attention(q, k, v, RowLayout.from_lengths([([8, 12], 8)]), weighting=weighting)
    swapped = miso_attention(q[order], k[order], v[order], RowLayout.from_lengths([([12, 8], 8)]), weighting=weighting)
    torch.testing.assert_close(forward[order], swapped, rtol=0, atol=1e-13)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_packed_equals_alone(weighting):
    lengths = [([7, 12, 5], 9), ([4], 6), ([3, 3], 2)]
    packed_layout = RowLayout.from_lengths(lengths)
    qkv = make_qkv(packed_layout.num_tokens, (4, 2))
    packed = values_and_gradients(miso_attention, packed_layout, qkv, weighting=weighting)
    start = 0
    weights = torch.linspace(-1, 1, packed[0].numel(), dtype=torch.float64).view_as(packed[0])
    for one in lengths:
        layout = RowLayout.from_lengths([one])
        rows = slice(start, start + layout.num_tokens)
        alone = tuple(x.detach()[rows].requires_grad_() for x in qkv)
        out = miso_attention(*alone, layout, weighting=weighting)
        grads = torch.autograd.grad((out * weights[rows]).sum(), alone)
        for whole, part in zip(packed, [out, *grads], strict=True):
            torch.testing.assert_close(whole[rows], part, rtol=0, atol=1e-13)
        start += layout.num_tokens


def test_dropping_the_lse_gradient_would_be_caught(monkeypatch):
    """What autograd through a flash kernel's (out, lse) gives: the merge's shares taken for constants."""

    def merge_without_lse_gradient(inputs: list[BlockResult], output: BlockResult) -> Merged:
        merged = merge_uniform(inputs, output)
        n = len(inputs)
        shares = [torch.exp(block.lse - values.lse) for block, values in zip(inputs, merged.inputs, strict=True)]
        own = sum(torch.exp(output.lse - values.lse) for values in merged.inputs) / n
        # Constant shares: block i's backward gets its own out and lse and the gradient times share_i / n.
        # The factor is per query, so it goes into the values' lse: exp(s - lse_i) * share = exp(s - L_i).
        return Merged(
            merged.out,
            [
                BackwardValues(block.out, block.lse - torch.log(share), grad_factor=1 / n)
                for block, share in zip(inputs, shares, strict=True)
            ],
            BackwardValues(output.out, output.lse - torch.log(own)),
        )

    monkeypatch.setitem(fused.WEIGHTINGS, "uniform", merge_without_lse_gradient)
    layout = RowLayout.from_lengths([([7, 12, 5], 9)])
    qkv = make_qkv(layout.num_tokens, (4, 2))
    expected = values_and_gradients(reference_attention, layout, qkv)
    got = values_and_gradients(miso_attention, layout, qkv)
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-12)  # the forward pass shows nothing
    torch.testing.assert_close(got[3], expected[3], rtol=0, atol=1e-12)  # nor does dV
    for index in (1, 2):
        relative = (got[index] - expected[index]).norm() / expected[index].norm()
        assert relative > 0.1, "the tests above would not notice a lost LSE gradient"


def test_unknown_weighting_is_named():
    layout = RowLayout.from_lengths([([2], 2)])
    for attention in (miso_attention, reference_attention):
        with pytest.raises(ValueError, match="weighting 'mean' is not one of uniform, fid, vanilla"):
            attention(*make_qkv(4, (2, 2)), layout, weighting="mean")
