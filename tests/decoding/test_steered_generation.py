"""Steered multi-input decoding against the definition, pair by pair in float64, and against the steered stock model."""

import pytest
import torch
from tests.conftest import make_tokenizer
from tests.decoding.conftest import make_model
from tests.decoding.test_generation import INPUTS, opening, rendered
from transformers import AttentionInterface, AttentionMaskInterface

from misotune.attention.steered import steered_attention
from misotune.attention.steering import SteerArguments, Steering
from misotune.decoding import generate
from misotune.errors import UnsupportedModelError

NUM_NEW = 6
STEERING = Steering(0.05, layers=(1, 3), heads=(1, 2, 4))


def literal(module, query, key, value, attention_mask, scaling=None, **options):
    """Each pair's softmax masses, those of tokens that are not the user's scaled; then the pairs' weighted sum."""
    inputs, output, is_user, weighting = options["literal"]
    copies = query.shape[1] // key.shape[1]
    k, v = (x[0].repeat_interleave(copies, dim=0) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    masses = (query[0] @ k.transpose(1, 2) * scale).exp()
    for head in range(len(masses)):
        if module.layer_idx + 1 in STEERING.layers and head + 1 in STEERING.heads:
            masses[head][:, ~is_user] *= STEERING.alpha
    result = torch.zeros(query.shape[2], query.shape[1], value.shape[-1], dtype=value.dtype)

    def attend(token, keys):
        own = masses[:, token, keys]
        return torch.einsum("hs,hsd->hd", own, v[:, keys]) / own.sum(dim=1)[:, None], own.sum(dim=1)

    for x in inputs:
        for t, token in enumerate(x):
            result[token] = attend(token, [*x[: t + 1]])[0]
    for t, token in enumerate(output):
        known = [*output[: t + 1]]
        if weighting == "vanilla":
            result[token] = attend(token, [i for x in inputs for i in x] + known)[0]
            continue
        outs, sums = zip(*(attend(token, [*x, *known]) for x in inputs), strict=True)
        sums = torch.stack(sums)
        shares = sums / sums.sum(dim=0) if weighting == "fid" else torch.full_like(sums, 1 / len(inputs))
        result[token] = (shares[..., None] * torch.stack(outs)).sum(dim=0)
    return result[None], None


def literal_logits(model, tokenizer, response, weighting):
    parts = [rendered(tokenizer, text) for text in INPUTS]
    output = [*opening(tokenizer), *response[:-1]]
    row, inputs, is_user, positions = [], [], [], []
    longest = max(map(len, parts))
    for part, text in zip(parts, INPUTS, strict=True):
        inputs.append(range(len(row), len(row) + len(part)))
        positions += range(longest - len(part), longest)
        row += part
        start = len(tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"])
        is_user += [start <= i < start + len(text.encode()) for i in range(len(part))]
    positions += range(longest, longest + len(output))
    told = (inputs, range(len(row), len(row) + len(output)), torch.tensor(is_user + [False] * len(output)), weighting)
    AttentionInterface.register("literal-steered-pairs", literal)
    AttentionMaskInterface.register("literal-steered-pairs", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("literal-steered-pairs")
    try:
        with torch.no_grad():
            ids, places = torch.tensor([[*row, *output]]), torch.tensor([positions])
            logits = model(ids, position_ids=places, use_cache=False, literal=told).logits[0]
    finally:
        model.set_attn_implementation(before)
    return logits[-len(response) :]


@pytest.mark.parametrize("weighting", ["uniform", "fid", "vanilla"])
def test_each_pair_is_steered_on_its_own(llama, weighting):
    tokenizer = make_tokenizer()
    options = {"max_new_tokens": NUM_NEW, "weighting": weighting, "return_dict_in_generate": True}
    options |= {"output_logits": True, "steering": STEERING}
    for kernel in ("auto", "eager", "reference"):
        found = generate(llama, tokenizer, INPUTS, kernel=kernel, **options)
        logits = torch.stack([step[0] for step in found.output.logits]).double()
        expected = literal_logits(llama, tokenizer, list(found.token_ids), weighting)
        # `generate` keeps logits in float32.
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    plain = generate(llama, tokenizer, INPUTS, **{**options, "steering": None})
    assert (plain.output.logits[0] - found.output.logits[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_one_input_is_the_stock_model_steered(name):
    model, tokenizer, steering = make_model(name), make_tokenizer(), Steering(0.1)
    found = generate(model, tokenizer, INPUTS[:1], max_new_tokens=NUM_NEW, steering=steering)
    head = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    row = [*rendered(tokenizer, INPUTS[0]), *opening(tokenizer)]
    response = []
    with torch.no_grad(), steered_attention(model, steering):
        for _ in range(len(found.token_ids)):
            is_user = [[len(head) <= i < len(head) + len(INPUTS[0]) for i in range(len(row))]]
            steer = SteerArguments.of(steering, torch.tensor(is_user))
            response.append(int(model(torch.tensor([row]), use_cache=False, steer=steer).logits[0, -1].argmax()))
            row.append(response[-1])
    assert list(found.token_ids) == response


def test_alpha_1_is_the_model_as_it_is(llama):
    tokenizer = make_tokenizer()
    options = {"max_new_tokens": NUM_NEW, "return_dict_in_generate": True, "output_logits": True}
    plain, steered = (generate(llama, tokenizer, INPUTS, steering=s, **options) for s in (None, Steering(1.0)))
    assert torch.equal(torch.stack(plain.output.logits), torch.stack(steered.output.logits))


def test_a_softcap_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"caps its scores \(softcap 2\).*use misotune eval"):
        generate(make_model("gemma2-softcap"), make_tokenizer(), INPUTS, steering=Steering(0.5))
