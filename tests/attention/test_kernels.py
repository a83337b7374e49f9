"""Which kernel is taken, what torch must offer for it, and what a row costs in memory."""

from types import SimpleNamespace

import pytest
import torch

from misotune.attention import kernels, miso_attention
from misotune.attention.kernels import KERNELS, select_kernel
from misotune.attention.kernels.cpu import CpuFlash
from misotune.attention.plan import plan_row
from misotune.layout import RowLayout

CPU = torch.device("cpu")


def run(layout, tokens_heads=(9, 3), dtype=torch.float32, **options):
    qkv = [torch.randn(layout.num_tokens, n, 64).to(dtype).requires_grad_() for n in (*tokens_heads, tokens_heads[1])]
    out = miso_attention(*qkv, layout, **options)
    torch.autograd.grad(out, qkv, torch.ones_like(out))


def peak_bytes(layout, **options):
    """The most memory that a forward and backward hold, scratch memory of the kernels included."""
    run(layout, **options)  # whatever is made once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(layout, **options)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("kernel", ["flash", "eager"])
@pytest.mark.parametrize("weighting", ["uniform", "fid"])
def test_peak_memory_is_linear_in_tokens(weighting, kernel, monkeypatch):
    monkeypatch.setattr(kernels.eager, "_SCORES_AT_ONCE", 2**16)  # else these rows' scores all fit at once
    once, twice, four_times = (
        peak_bytes(RowLayout.from_lengths([([48 * m, 32 * m, 64 * m], 96 * m)]), weighting=weighting, kernel=kernel)
        for m in (1, 2, 4)
    )
    # Quadratic growth would be fourfold. Larger blocks are parted, which takes some memory from a size on.
    assert twice < 2.3 * once
    assert four_times < 2.3 * twice


def test_the_reference_is_not_linear_so_the_measure_would_show_it():
    once, twice = (
        peak_bytes(RowLayout.from_lengths([([96 * m, 128 * m], 160 * m)]), kernel="reference") for m in (2, 4)
    )
    assert twice > 3 * once


def test_the_outputs_keys_are_in_one_block_alone_and_no_key_is_read_twice_in_a_call():
    layout = RowLayout.from_lengths([([7, 12, 5], 9), ([4], 6), ([3, 3], 2)])
    for weighting in ("uniform", "fid", "vanilla"):
        plan = plan_row(layout, weighting)
        outputs = {token for sample in layout.samples if len(sample.inputs) > 1 for token in range(*sample.output)}
        read = [token for block in plan.pairs.items for token in range(*block.keys)]
        assert len(set(read)) == len(read)
        assert not outputs & set(read)
        own = [token for block in plan.segments.items for token in range(*block.keys)]
        assert sorted(own) == list(range(layout.num_tokens))


@pytest.mark.parametrize("weighting", ["uniform", "fid", "vanilla"])
def test_query_key_products_are_at_most_those_of_one_causal_row(weighting):
    for lengths in ([([180, 60, 60, 70, 65, 45], 300)], [([1, 1], 1)], [([5], 3), ([2, 9], 4)]):
        layout = RowLayout.from_lengths(lengths)
        plan = plan_row(layout, weighting)
        products = sum(len(b.queries) * (len(b.queries) + 1) // 2 for b in plan.segments.items)
        products += sum(len(b.queries) * len(b.keys) for b in plan.pairs.items)
        assert products <= layout.num_tokens * (layout.num_tokens + 1) // 2


def test_the_kernel_is_chosen_by_what_it_can_do():
    assert select_kernel("auto", CPU, torch.bfloat16, 64).name == "flash (CPU)"
    assert select_kernel("auto", CPU, torch.bfloat16, 64, softcap=50.0).name == "eager"
    assert select_kernel("eager", CPU, torch.bfloat16, 64).name == "eager"
    assert select_kernel("auto", torch.device("meta"), torch.float32, 64).name == "eager"
    with pytest.raises(ValueError, match="there is no flash kernel for meta here; use 'auto' or 'eager'"):
        select_kernel("flash", torch.device("meta"), torch.float32, 64)
    with pytest.raises(ValueError, match="kernel 'fastest' is not one of " + ", ".join(KERNELS)):
        select_kernel("fastest", CPU, torch.float32, 64)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return torch.device("cuda")


def test_cuda_flash_takes_half_precision_alone(gpu):
    assert select_kernel("flash", gpu, torch.bfloat16, 128).name == "flash (CUDA)"
    assert select_kernel("auto", gpu, torch.float32, 128).name == "eager"
    with pytest.raises(ValueError, match="on CUDA it takes bfloat16 and float16, not float32"):
        select_kernel("flash", gpu, torch.float32, 128)
    with pytest.raises(ValueError, match="on CUDA it takes head sizes up to 256 that 8 divides, not 320"):
        select_kernel("flash", gpu, torch.bfloat16, 320)


def test_old_gpus_are_named(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match=r"Tesla T4 is older than compute capability 8\.0"):
        select_kernel("flash", gpu, torch.bfloat16, 128)


@pytest.fixture
def forgotten_kernels():
    kernels._flash.cache_clear()
    yield
    kernels._flash.cache_clear()


def test_a_torch_without_the_operators_is_named(forgotten_kernels, gpu, monkeypatch):
    monkeypatch.setattr(kernels, "_has_arguments", lambda operator, names: False)
    with pytest.raises(ValueError, match=r"torch .* has no aten::_scaled_dot_product_flash_attention_for_cpu of the"):
        select_kernel("flash", CPU, torch.float32, 64)
    with pytest.raises(
        ValueError, match="has no _flash_attention_forward and no _flash_attention_backward of the form"
    ):
        select_kernel("flash", gpu, torch.bfloat16, 64)
    assert select_kernel("auto", CPU, torch.float32, 64).name == "eager"


def test_a_torch_whose_cpu_operator_wants_as_many_key_heads_gets_them(forgotten_kernels, monkeypatch):
    aten = torch.ops.aten
    forward = aten._scaled_dot_product_flash_attention_for_cpu

    def strict(q, k, v, *args, **kwargs):
        if q.shape[1] != k.shape[1]:
            raise RuntimeError("expected as many heads")
        return forward(q, k, v, *args, **kwargs)

    strict.default = forward.default
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    names = {forward.__name__.split(".")[0]: strict, backward.__name__.split(".")[0]: backward}
    monkeypatch.setattr(torch.ops, "aten", SimpleNamespace(**names))
    kernel = select_kernel("flash", CPU, torch.float32, 64)
    assert isinstance(kernel, CpuFlash)
    assert kernel._repeats_keys
    run(RowLayout.from_lengths([([5, 5, 3], 4)]), kernel="flash")
