"""The chunked cross-entropy against the plain one: losses, every gradient, memory, and models that it does not fit."""

import json

import pytest
import torch
from tests.training.rank_driver import Case, train_on_two_ranks
from torch import nn
from torch.nn import functional
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, LlamaForCausalLM

from misotune import packages
from misotune.errors import RunError, UsageError
from misotune.training.cross_entropy import CHUNK_LOGITS, CrossEntropy, choose_cross_entropy, chunk_tokens
from misotune.training.liger import check_liger
from misotune.training.loss import token_losses
from misotune.training.model import checkpoint_activations
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def small_llama(*, tied=True, vocab_size=97, bias=False):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=vocab_size, tie_word_embeddings=tied))
    if bias:
        model.lm_head.bias = nn.Parameter(torch.randn(vocab_size))
    return model


def small_batch(num_trained=37, vocab_size=97):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocab_size, (1, 60), generator=generator)
    kept = torch.randperm(60, generator=generator)[:num_trained].sort().values
    return {"input_ids": ids, "logits_to_keep": kept}, torch.randint(0, vocab_size, (num_trained,), generator=generator)


def loss_and_gradients(model, losses, upstream):
    model.zero_grad()
    (losses * upstream).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses.detach(), gradients


def compared_with_plain(model, *, num_trained=37, autocast=False, chunk=5, seed=None):
    """Returns (losses, gradients) of the chunked and of the plain cross-entropy, tokens weighing differently."""
    arguments, targets = small_batch(num_trained)
    upstream = torch.linspace(0.1, 2.0, num_trained) if num_trained else torch.zeros(0)
    found = []
    for kind in ("plain", "chunked"):
        calls = CrossEntropy(model, kind, chunk=chunk)
        if seed is not None:
            torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = calls(model, arguments, targets)
        found.append(loss_and_gradients(model, losses, upstream))
        assert calls.kind == kind
    return found[1], found[0]


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_losses_and_every_gradient_are_the_plain_ones(tied, chunk):
    ours, plain = compared_with_plain(small_llama(tied=tied), chunk=chunk)
    # The same sums in float32, added up chunk by chunk.
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert "model.embed_tokens.weight" in ours[1]


def test_a_head_with_a_bias_gets_its_gradient():
    ours, plain = compared_with_plain(small_llama(tied=False, bias=True))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert ours[1]["lm_head.bias"].abs().max() > 0.1


def test_under_bfloat16_autocast_weights_get_float32_gradients():
    ours, plain = compared_with_plain(small_llama(tied=False), autocast=True)
    # The logits are the same products, rounded to bfloat16; the plain gradient of the head is rounded too.
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-5)
    assert {gradient.dtype for gradient in ours[1].values()} == {torch.float32}
    for name, gradient in ours[1].items():
        assert (gradient - plain[1][name]).norm() < 1e-2 * plain[1][name].norm(), name


def test_bfloat16_weights_sum_their_chunks_in_float32():
    model = small_llama(tied=False)
    exact = compared_with_plain(model)[0][1]["lm_head.weight"]
    rounded = small_llama(tied=False)
    rounded.lm_head.to(torch.bfloat16).float()
    ours = compared_with_plain(small_llama(tied=False).bfloat16(), chunk=1)[0][1]["lm_head.weight"]
    assert ours.dtype == torch.bfloat16
    # 37 chunks: sums in bfloat16 would have added up 37 roundings.
    assert (ours.float() - exact).norm() < 2e-2 * exact.norm()


def test_a_row_that_trains_nothing_gives_every_weight_a_gradient_of_zero():
    ours, plain = compared_with_plain(small_llama(), num_trained=0)
    assert len(ours[0]) == 0
    assert ours[1].keys() == plain[1].keys()
    assert all(not gradient.any() for gradient in ours[1].values())


def test_a_frozen_head_costs_no_gradient_of_its_own():
    model = small_llama(tied=False)
    model.lm_head.requires_grad_(False)
    ours, plain = compared_with_plain(model)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert "lm_head.weight" not in ours[1]


def lora(model, **settings):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_adapter_on_the_head_is_trained(dropout):
    model = lora(small_llama(tied=False), target_modules=["lm_head", "q_proj"], lora_dropout=dropout).train()
    # Dropout draws for all tokens at once, or chunk by chunk: one chunk draws the same.
    ours, plain = compared_with_plain(model, chunk=5 if not dropout else 100, seed=3)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert any("lm_head.lora_A" in name for name in ours[1])


def test_gradient_checkpointing_goes_with_it():
    model = small_llama()
    checkpoint_activations(model)
    ours, plain = compared_with_plain(model.train())
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_without_targets_the_head_returns_logits():
    model = small_llama()
    arguments, targets = small_batch()
    before = model(**arguments).logits
    calls = CrossEntropy(model, "chunked", chunk=5)
    calls(model, arguments, targets)
    assert torch.equal(model(**arguments).logits, before)


def peak_bytes(function):
    """Returns the most bytes that the CPU allocator handed out at one time while `function` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_the_peak_is_that_of_a_chunk_and_not_of_all_logits():
    """1,024 tokens of 16 numbers, a vocabulary of 8,192: logits 32 MiB, the weight and its gradient half a MiB."""
    tokens, width, vocab_size, chunk = 1024, 16, 8192, 64
    logits = tokens * vocab_size * 4
    torch.manual_seed(0)
    model = small_llama(tied=False, vocab_size=vocab_size)
    model.lm_head = nn.Linear(width, vocab_size, bias=False)
    hidden, targets = torch.randn(1, tokens, width), torch.randint(0, vocab_size, (tokens,))

    def step(head, kind):
        inputs = hidden.clone().requires_grad_()
        losses = token_losses(head(inputs), targets) if kind == "plain" else head._losses(inputs, targets)
        losses.sum().backward()
        model.lm_head.weight.grad = None

    plain = peak_bytes(lambda: step(model.lm_head, "plain"))
    ours = peak_bytes(lambda: step(CrossEntropy(model, "chunked", chunk=chunk)._head, "chunked"))
    assert plain > 2 * logits
    # Three chunks of logits at a time, and what does not grow with the tokens.
    assert ours < 4 * chunk * vocab_size * 4 + 4 * vocab_size * width * 4
    assert ours < plain / 7


def test_nothing_of_the_size_of_the_logits_is_kept_for_the_backward_pass():
    model, kept = small_llama(tied=False, vocab_size=4096), []
    arguments, _ = small_batch(vocab_size=97)
    targets = torch.arange(37)

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    for kind in ("chunked", "plain"):
        calls = CrossEntropy(model, kind, chunk=5)
        calls(model, arguments, targets)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            calls(model, arguments, targets)
        assert (max(kept) >= 37 * 4096) == (kind == "plain"), kind


def test_a_chunk_holds_at_most_the_logits_that_the_plan_counts():
    assert chunk_tokens(128_256) * 128_256 <= CHUNK_LOGITS
    assert chunk_tokens(49_152) == 1365
    assert chunk_tokens(10**8) == 64


# Models that alter their logits after the head.

CHANGED = {
    "gemma2": (Gemma2Config(**SMALL, vocab_size=97, head_dim=8, num_key_value_heads=2), "final_logit_softcapping 30"),
    "granite": (GraniteConfig(**SMALL, vocab_size=97, logits_scaling=8.0), "logits_scaling 8"),
    "cohere": (CohereConfig(**SMALL, vocab_size=97, logit_scale=0.25), "logit_scale 0.25"),
}


@pytest.mark.parametrize(("config", "reason"), CHANGED.values(), ids=CHANGED)
def test_a_model_that_changes_its_logits_is_known_by_its_configuration(config, reason):
    kind, wording = choose_cross_entropy("auto", config, has_cuda=True)
    assert (kind, reason in wording) == ("plain", True)
    with pytest.raises(UsageError, match=rf"'chunked' cannot be used: .*\({reason}\); use 'auto' or 'plain'"):
        choose_cross_entropy("chunked", config, has_cuda=False)


@pytest.mark.parametrize(
    ("name", "has_cuda", "kind"),
    [("auto", True, "chunked"), ("auto", False, "plain"), ("chunked", False, "chunked"), ("plain", True, "plain")],
)
def test_the_kind_follows_the_recipe_and_the_device(name, has_cuda, kind):
    assert choose_cross_entropy(name, LlamaConfig(), has_cuda=has_cuda) == (kind, kind)
    granite = GraniteConfig(logits_scaling=1.0)
    assert choose_cross_entropy(name, granite, has_cuda=has_cuda)[0] == kind


def scaled(logits):
    return 30 * torch.tanh(logits / 30)


def cut(logits):
    return logits[..., :50] if logits.shape[-1] > 1 else logits


def with_bias(logits):
    return logits + torch.linspace(0, 1, 97)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (scaled, "the model changes its logits after the output head"),
        (cut, "losses differ from the plain loss by"),
        (with_bias, "the model changes its logits after the output head"),
    ],
)
def test_the_first_batch_finds_what_a_configuration_does_not_tell(change, found, dtype):
    model = small_llama(tied=False).to(dtype)
    # Large logits, as trained models have them; a cut of the vocabulary then shows.
    model.lm_head.weight.data *= 100
    stock = model.forward

    def forward(**arguments):
        outputs = stock(**arguments)
        outputs.logits = change(outputs.logits)
        return outputs

    model.forward = forward
    arguments, targets = small_batch()
    targets = targets.clamp(max=49)
    plain = CrossEntropy(model, "plain")(model, arguments, targets)
    said = []
    calls = CrossEntropy(model, "chunked", is_required=False, on_event=lambda kind, text: said.append((kind, text)))
    assert torch.equal(calls(model, arguments, targets), plain)
    assert calls.kind == "plain"
    ((kind, text),) = said
    assert kind == "warning"
    assert text.startswith(f"cross-entropy plain, since {found}")
    with pytest.raises(RunError, match=f"train.cross_entropy: 'chunked' cannot be used: {found}"):
        CrossEntropy(model, "chunked")(model, arguments, targets)


def test_a_wrong_gradient_is_found_on_the_first_batch(monkeypatch):
    """A kernel whose losses are right and whose gradient forgets the upstream one."""
    from misotune.training import cross_entropy as module

    class Forgetful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, bias, targets, *rest):
            ctx.save_for_backward(hidden, weight, targets)
            return functional.cross_entropy(hidden @ weight.T, targets, reduction="none")

        @staticmethod
        def backward(ctx, upstream):
            hidden, weight, targets = ctx.saved_tensors
            slope = (hidden @ weight.T).softmax(-1) - functional.one_hot(targets, len(weight))
            return slope @ weight, slope.T @ hidden, None, None, None, None

    monkeypatch.setattr(module, "_ChunkedLosses", Forgetful)
    model = small_llama(tied=False)
    with pytest.raises(RunError, match="gradient differ from the plain loss by"):
        CrossEntropy(model, "chunked")(model, *small_batch())


def test_a_poisoned_model_is_not_blamed_on_the_cross_entropy():
    model = small_llama()
    model.model.norm.weight.data.fill_(torch.nan)
    losses = CrossEntropy(model, "chunked")(model, *small_batch())
    assert losses.isnan().all()


def test_the_comparison_draws_no_random_number_and_leaves_training_on():
    model = lora(small_llama(), target_modules=["q_proj"], lora_dropout=0.5).train()
    calls, states = CrossEntropy(model, "chunked"), []
    plain = CrossEntropy(model, "plain")
    arguments, targets = small_batch()
    for kind in (plain, calls):
        torch.manual_seed(5)
        kind(model, arguments, targets)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert model.training


# Whole runs.


SMALL_CHUNKS = "tests.training.test_cross_entropy:use_small_chunks"


def use_small_chunks(rank=0):
    """Chunks of 64 tokens of the byte-level vocabulary, in place of a quarter of a million."""
    from misotune.training import cross_entropy as module

    module.CHUNK_LOGITS = 259 * 64


def read_losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def losses_of(recipe, **options):
    return read_losses(train(recipe, "name: t\n", **options))


@pytest.mark.parametrize(
    ("precision", "lora_section", "tolerance"),
    [("fp32", None, 1e-5), ("fp32", {"rank": 4}, 1e-5), ("bf16", None, 1e-2)],
    ids=["fp32", "lora", "bf16"],
)
def test_a_run_has_the_plain_losses_and_says_how_close(make_recipe, monkeypatch, precision, lora_section, tolerance):
    from misotune.training import cross_entropy as module

    monkeypatch.setattr(module, "CHUNK_LOGITS", 259 * 64)
    settings = {"precision": precision, "learning_rate": 1e-3}
    said = []
    plain, chunked = (
        losses_of(
            make_recipe(kind, train=settings | {"cross_entropy": kind}, lora=lora_section),
            watcher=Watcher(on_message=said.append),
        )
        for kind in ("plain", "chunked")
    )
    assert chunked == pytest.approx(plain, rel=tolerance)
    (line,) = [text for text in said if text.startswith("cross-entropy chunked: on the first row, losses differ from")]
    assert float(line.split("plain ones by ")[1].split()[0]) < tolerance


def test_the_comparison_is_an_event_of_the_run_and_the_kind_stands_in_the_plan(make_recipe):
    run = train(make_recipe(train={"cross_entropy": "chunked", "max_steps": 1}), "name: t\n")
    assert run.read_plan()["cross_entropy"] == "chunked"
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert any(event["kind"] == "start" and event["text"].startswith("cross-entropy chunked") for event in events)


def test_a_model_that_caps_its_logits_trains_plainly_or_is_refused_before_the_start(make_recipe, capped_model_dir):
    recipe = make_recipe(model={"name": str(capped_model_dir)}, train={"cross_entropy": "chunked"})
    with pytest.raises(UsageError, match="'chunked' cannot be used: gemma2 changes its logits"):
        prepare_run(recipe, num_devices=1, watcher=Watcher())


@pytest.mark.distributed
def test_ranks_and_zero_stages_keep_the_losses(make_recipe, tmp_path):
    """ZeRO-3 holds weights in pieces and lets go of them between forward and backward; DDP waits for every gradient."""
    plain = losses_of(make_recipe("plain", train={"tokens_per_micro_batch": 600}))
    chunked = {"cross_entropy": "chunked", "tokens_per_micro_batch": 600}
    cases = [
        Case(make_recipe("zero-3", train=chunked, deepspeed={"stage": 3}), ranks=1, before=SMALL_CHUNKS),
        Case(make_recipe("ddp", train=chunked), before=SMALL_CHUNKS),
        Case(make_recipe("spare", train=chunked | {"batch_size": 1}), before=SMALL_CHUNKS),
    ]
    runs = train_on_two_ranks(cases, tmp_path)
    for run in runs[:2]:
        # Other engines add in another order (test_distributed.py).
        assert read_losses(run) == pytest.approx(plain, rel=1e-5), run.name
    # One sample a step: the second rank trains nothing, and takes the first one's verdict.
    assert read_losses(runs[2]) == pytest.approx(losses_of(make_recipe("one", train={"batch_size": 1})), rel=1e-5)


# Liger, which needs CUDA.


def test_liger_without_cuda_or_package_is_refused_with_the_cure(monkeypatch):
    with pytest.raises(UsageError, match=r"train.cross_entropy: 'liger' needs a CUDA device, and there is none here"):
        choose_cross_entropy("liger", LlamaConfig(), has_cuda=False)
    monkeypatch.setattr(packages, "installed_version", lambda name: None)
    with pytest.raises(UsageError, match=r"liger-kernel 0.8.5 or newer, which is not installed: pip install"):
        check_liger("train.liger_kernels", has_cuda=True)
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.7.10")
    with pytest.raises(UsageError, match=r"or newer, and 0.7.10 is installed"):
        check_liger("train.liger_kernels", has_cuda=True)
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.10.0")
    check_liger("train.liger_kernels", has_cuda=True)
