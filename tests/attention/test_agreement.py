"""The fast path against the definition: values and every gradient, over layouts, heads and weightings."""

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from misotune.attention import WEIGHTINGS, fused, miso_attention, reference_attention
from misotune.attention.kernels import cpu, eager
from misotune.attention.merge import merge
from misotune.layout import RowLayout

LAYOUTS = {
    "two-samples": [([7, 12, 5], 9), ([4], 6)],
    "one-input": [([11], 5)],
    "single-tokens": [([1, 1], 1), ([1], 1), ([1, 1, 1], 2)],
    "long-output": [([3, 2], 70)],
    "many-inputs": [([5] * 16, 8)],
    "equal-where-a-window-of-six-sees": [([7, 10, 11], 11), ([6, 12, 11], 7)],
    "equal-samples": [([4, 4], 3), ([6], 3), ([4, 4], 3), ([2, 9, 2], 3)],
}
# What each kind of model asks of attention: all of it, a sliding window, capped scores.
FEATURES = {"plain": {}, "window": {"window": 6}, "wide-window": {"window": 16}, "softcap": {"softcap": 2.0}}
HEADS = {"mha": (4, 4), "gqa": (6, 2), "mqa": (4, 1)}

lengths = st.integers(1, 12)
rows = st.lists(st.tuples(st.lists(lengths, min_size=1, max_size=6), lengths), min_size=1, max_size=4)


def make_qkv(num_tokens, heads, dtype=torch.float64, seed=0, head_size=8):
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    return tuple(
        torch.randn(num_tokens, n, head_size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (num_heads, num_kv_heads, num_kv_heads)
    )


def values_and_gradients(attention, layout, qkv, **options):
    out = attention(*qkv, layout, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)]


def with_weights(layout):
    """Gives every sample weights of its own: input i counts i times as much as the first."""
    samples = []
    for sample in layout.samples:
        total = sum(range(1, len(sample.inputs) + 1))
        samples.append(sample._replace(weights=tuple((i + 1) / total for i in range(len(sample.inputs)))))
    return replace(layout, samples=tuple(samples))


def assert_agree(layout, qkv, tolerance, kernel="flash", **options):
    if options.get("weighting") == "fixed":
        layout = with_weights(layout)
    expected = values_and_gradients(reference_attention, layout, qkv, **options)
    got = values_and_gradients(miso_attention, layout, qkv, kernel=kernel, **options)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_fast_path_equals_the_equations_in_float64(lengths, weighting, heads):
    layout = RowLayout.from_lengths(lengths)
    assert_agree(layout, make_qkv(layout.num_tokens, heads), 1e-10, weighting=weighting)


@pytest.mark.parametrize(
    ("kernel", "feature"),
    [("eager", name) for name in FEATURES] + [("flash", "window"), ("flash", "wide-window")],
)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_every_kernel_equals_the_equations_with_what_models_add(lengths, weighting, kernel, feature):
    layout = RowLayout.from_lengths(lengths)
    qkv = make_qkv(layout.num_tokens, (6, 2))
    assert_agree(layout, qkv, 1e-10, kernel=kernel, weighting=weighting, **FEATURES[feature])


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    lengths=rows,
    weighting=st.sampled_from(sorted(WEIGHTINGS)),
    heads=st.sampled_from(list(HEADS.values())),
    window=st.none() | st.integers(1, 30),
    kernel=st.sampled_from(["flash", "eager"]),
)
def test_fast_path_equals_the_equations_on_any_layout(lengths, weighting, heads, window, kernel):
    layout = RowLayout.from_lengths(lengths)
    qkv = make_qkv(layout.num_tokens, heads)
    assert_agree(layout, qkv, 1e-10, kernel=kernel, weighting=weighting, scale=0.7, window=window)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_float32_stays_within_its_rounding(weighting):
    layout = RowLayout.from_lengths([([64, 96, 33], 80)])
    assert_agree(layout, make_qkv(layout.num_tokens, (6, 2), torch.float32), 2e-5, weighting=weighting)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_bfloat16_errs_no_more_than_one_causal_call(weighting):
    """One causal call over the same tokens is what any bfloat16 training rounds to."""
    layout = with_weights(RowLayout.from_lengths([([180, 60, 60, 70, 65, 45], 300)]))
    rounded = [x.detach().bfloat16() for x in make_qkv(layout.num_tokens, (9, 3), head_size=64)]
    grad = torch.randn(layout.num_tokens, 9, 64, generator=torch.Generator().manual_seed(1)).bfloat16()

    def miso(q, k, v):
        return miso_attention(q, k, v, layout, weighting=weighting)

    def causal(q, k, v):
        heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)

    def errors(attention):
        results = []
        for dtype in (torch.bfloat16, torch.float64):
            qkv = [x.to(dtype).requires_grad_() for x in rounded]
            out = attention(*qkv)
            results.append([out.detach(), *torch.autograd.grad(out, qkv, grad.to(dtype))])
        return [((got - want).norm() / want.norm()).item() for got, want in zip(*results, strict=True)]

    assert all(ours <= usual for ours, usual in zip(errors(miso), errors(causal), strict=True))


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
    """What autograd through a flash kernel's (out, lse) gives: the merge's shares taken for constants.

    Each block's own result then corrects its rows, in place of the fused ones.
    """
    own_results = []

    def merge_without_lse_gradient(groups, own, log_weights, log_copies):
        own_results.append(own.out.clone())
        group_results = groups.out.clone()
        merged = merge(groups, own, log_weights, log_copies)
        groups.out.copy_(group_results)
        return merged

    monkeypatch.setattr(fused, "merge", merge_without_lse_gradient)
    monkeypatch.setattr(fused, "own_backward_out", lambda *_: own_results.pop())
    layout = RowLayout.from_lengths([([7, 12, 5], 9)])
    qkv = make_qkv(layout.num_tokens, (4, 2))
    expected = values_and_gradients(reference_attention, layout, qkv)
    got = values_and_gradients(miso_attention, layout, qkv)
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-12)  # the forward pass shows nothing
    torch.testing.assert_close(got[3], expected[3], rtol=0, atol=1e-12)  # nor does dV
    for index in (1, 2):
        relative = (got[index] - expected[index]).norm() / expected[index].norm()
        assert relative > 0.1, "the tests above would not notice a lost LSE gradient"


@pytest.mark.parametrize("kernel", ["flash", "eager"])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("inputs", [[7, 12, 5], [8]], ids=["three", "one"])
def test_last_queries_with_all_keys_equal_the_whole_row(inputs, weighting, window, kernel):
    """Decoding: the keys of all tokens are there, the queries are those of the output's last tokens."""
    layout = RowLayout.from_lengths([(inputs, 9)])
    q, k, v = (x.detach() for x in make_qkv(layout.num_tokens, (4, 2)))
    options = {"weighting": weighting, "window": window}
    whole = reference_attention(q, k, v, layout, **options)
    for count in (1, 2, 9):
        last = miso_attention(q[-count:], k, v, layout, kernel=kernel, **options)
        torch.testing.assert_close(last, whole[-count:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows_at_once", [1, 16, 4096])
@pytest.mark.parametrize("leaf", [1, 3, 4])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_parted_and_batched_blocks_of_the_cpu_kernel_sum_to_the_whole(
    lengths, weighting, leaf, rows_at_once, monkeypatch
):
    monkeypatch.setattr(cpu, "_CAUSAL_LEAF", leaf)
    monkeypatch.setattr(cpu, "_ROWS_AT_ONCE", rows_at_once)
    layout = RowLayout.from_lengths(lengths)
    qkv = make_qkv(layout.num_tokens, (6, 2))
    assert_agree(layout, qkv, 1e-10, weighting=weighting)
    assert_agree(layout, qkv, 1e-10, weighting=weighting, window=6)


def test_large_blocks_are_tiled_by_the_eager_kernel(monkeypatch):
    monkeypatch.setattr(eager, "_SCORES_AT_ONCE", 100)
    layout = RowLayout.from_lengths([([7, 12, 5], 9)])
    for feature in FEATURES.values():
        assert_agree(layout, make_qkv(layout.num_tokens, (4, 2)), 1e-10, kernel="eager", **feature)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["flash", "eager"])
def test_every_type_comes_back_as_it_went_in(dtype, kernel):
    layout = RowLayout.from_lengths([([7, 12, 5], 9)])
    results = values_and_gradients(miso_attention, layout, make_qkv(33, (4, 2), dtype), kernel=kernel)
    assert {x.dtype for x in results} == {dtype}
    exact = values_and_gradients(miso_attention, layout, make_qkv(33, (4, 2)), kernel=kernel)
    for got, want in zip(results, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0.05, atol=30 * torch.finfo(dtype).eps)


def test_unknown_weighting_is_named():
    layout = RowLayout.from_lengths([([2], 2)])
    for attention in (miso_attention, reference_attention):
        with pytest.raises(ValueError, match="weighting 'mean' is not one of uniform, fixed, fid, vanilla"):
            attention(*make_qkv(4, (2, 2)), layout, weighting="mean")


@pytest.mark.parametrize("weights", [(0.5,), (0.9, 0.2), (1.5, -0.5)])
def test_weights_that_do_not_fit_the_inputs_are_refused(weights):
    layout = RowLayout.from_lengths([([2, 2], 2)])
    layout = replace(layout, samples=(layout.samples[0]._replace(weights=weights),))
    with pytest.raises(ValueError, match="a sample of 2 inputs needs as many positive weights of sum 1"):
        miso_attention(*make_qkv(6, (2, 2)), layout, weighting="fixed")


def test_kernels_that_cannot_do_it_say_why():
    layout = RowLayout.from_lengths([([2], 2)])
    q, k, v = make_qkv(4, (2, 2))
    with pytest.raises(ValueError, match="kernel 'reference' needs the queries of the whole row"):
        miso_attention(q[-1:], k, v, layout, kernel="reference")
    with pytest.raises(ValueError, match="gradients need the queries of the whole row"):
        miso_attention(q[-1:], k, v, layout)
    with pytest.raises(ValueError, match=r"kernel 'flash' cannot be used: it does not cap scores \(softcap 50\)"):
        miso_attention(*make_qkv(4, (2, 2)), layout, softcap=50.0, kernel="flash")
    with pytest.raises(ValueError, match="kernel 'fast' is not one of auto, flash, eager, reference"):
        miso_attention(*make_qkv(4, (2, 2)), layout, kernel="fast")
