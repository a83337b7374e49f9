"""The measured share against stock transformers' own softmax, and against the equations written out."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from misotune.analysis.dilution.observed import output_shares
from misotune.layout import EncodedSample, RowLayout

WEIGHTINGS = ("vanilla", "uniform", "fid")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    """Two layers, four heads on two key-value heads, in float64."""
    load = AutoModelForCausalLM.from_pretrained
    return load(tiny_model_dir, dtype=torch.float64, attn_implementation="eager").eval()


def make_sample(input_lengths, output_length, *, vocabulary=250, seed=0):
    generator = np.random.default_rng(seed)
    inputs = tuple(generator.integers(0, vocabulary, n, dtype=np.int32) for n in input_lengths)
    output = generator.integers(0, vocabulary, output_length, dtype=np.int32)
    return EncodedSample("row", inputs, output, np.ones(output_length, dtype=bool))


def row_of(sample):
    """Token ids (1, T), and the layout that the paper's section 4.1 gives them."""
    ids = np.concatenate([*sample.inputs, sample.output]).astype(np.int64)
    layout = RowLayout.from_lengths([([len(x) for x in sample.inputs], len(sample.output))])
    return torch.as_tensor(ids)[None], layout


def stock_share(model, sample, **options):
    """Of a stock model's attention weights, what lies on the output's own keys: (L, H, Y)."""
    ids, layout = row_of(sample)
    y = layout.samples[0].output.tokens
    softmax = torch.nn.functional.softmax
    with pytest.MonkeyPatch.context() as patch:
        # Stock models round their softmax to float32, whatever the model's type.
        patch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype: softmax(scores, dim=dim))
        weights = model(ids, output_attentions=True, use_cache=False, **options).attentions
    return torch.stack([layer[0, :, y, y].sum(dim=-1) for layer in weights])


def dense_mask(layout):
    """Adds -inf to the scores of all keys that a token does not read: (1, 1, T, T)."""
    (sample,) = layout.samples
    seen = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    for span in (*sample.inputs, sample.output):
        seen[span.tokens, span.tokens] = torch.ones(len(span), len(span), dtype=torch.bool).tril()
    for x in sample.inputs:
        seen[sample.output.tokens, x.tokens] = True
    return torch.zeros(1, 1, *seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def scores_of_every_layer(model, sample, weighting):
    """exp(q k / sqrt(D)) of the output's queries and all keys, layer by layer, while the model runs: (H, Y, T)."""
    from misotune.attention import MisoArguments, register

    register()
    ids, layout = row_of(sample)
    found = []

    def note(module, args, kwargs):
        hidden, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        heads = (1, hidden.shape[1], -1, module.head_dim)
        q = rotated(module.q_proj(hidden).view(heads).transpose(1, 2), cos, sin)[0]
        k = rotated(module.k_proj(hidden).view(heads).transpose(1, 2), cos, sin)[0]
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
        found.append(torch.exp(q[:, layout.samples[0].output.tokens] @ k.mT / module.head_dim**0.5))

    hooks = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.layers]
    model.set_attn_implementation("miso")
    with torch.no_grad():
        miso = MisoArguments(layout, weighting, "reference")
        model(ids, position_ids=layout.position_ids[None], miso=miso, use_cache=False)
    model.set_attn_implementation("eager")
    for hook in hooks:
        hook.remove()
    return found, layout.samples[0]


def sums_of(scores, spans):
    """S_1 .. S_n (n, H, Y) and S_out (H, Y) of equation 2, the output's keys causal."""
    s_inputs = torch.stack([scores[..., x.tokens].sum(dim=-1) for x in spans.inputs])
    return s_inputs, scores[..., spans.output.tokens].tril().sum(dim=-1)


SHARES = {
    "vanilla": lambda s, s_out: s_out / (s.sum(dim=0) + s_out),
    "uniform": lambda s, s_out: (s_out / (s + s_out)).mean(dim=0),
    "fid": lambda s, s_out: len(s) * s_out / (s + s_out).sum(dim=0),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_beside_one_input_it_is_the_stock_models_attention_weights(model, weighting):
    sample = make_sample([13], 7)
    measured = output_shares(model, sample, [1], WEIGHTINGS)[1, weighting]
    torch.testing.assert_close(measured, stock_share(model, sample), rtol=0, atol=1e-8)


def test_under_vanilla_it_is_the_stock_models_attention_weights_under_a_dense_mask(model):
    sample = make_sample([9, 12, 3], 6)
    _, layout = row_of(sample)
    expected = stock_share(model, sample, position_ids=layout.position_ids[None], attention_mask=dense_mask(layout))
    measured = output_shares(model, sample, [3], ["vanilla"])[3, "vanilla"]
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_under_any_weighting_it_is_the_equation_written_out(model, weighting):
    sample = make_sample([9, 12, 3], 6)
    scores, spans = scores_of_every_layer(model, sample, weighting)
    expected = torch.stack([SHARES[weighting](*sums_of(layer, spans)) for layer in scores])
    measured = output_shares(model, sample, [3], [weighting])[3, weighting]
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-8)


def test_under_vanilla_it_is_equation_6(model):
    sample = make_sample([9, 12, 3, 5], 6)
    scores, spans = scores_of_every_layer(model, sample, "vanilla")
    measured = output_shares(model, sample, [4], ["vanilla"])[4, "vanilla"]
    for layer, share in zip(scores, measured, strict=True):
        s, s_out = sums_of(layer, spans)
        ratio = s_out / s.sum(dim=0)
        harmonic_mean = 1 / ((s + s_out) / s_out).mean(dim=0)
        torch.testing.assert_close(share, harmonic_mean * (1 / 4 + ratio) / (1 + ratio), rtol=0, atol=1e-8)


@pytest.mark.parametrize("weighting", ["uniform", "fid"])
def test_the_same_input_many_times_changes_nothing_under_uniform_and_fid(model, weighting):
    sample = make_sample([11] * 8, 6)
    shares = output_shares(model, repeat_first(sample), [1, 2, 8], WEIGHTINGS)
    for n in (2, 8):
        torch.testing.assert_close(shares[n, weighting], shares[1, weighting], rtol=0, atol=1e-10)


def test_the_same_input_many_times_dilutes_vanilla_by_the_closed_form(model):
    """In the first layer, whose queries and keys know of no attention yet; further up the share falls too."""
    shares = output_shares(model, repeat_first(make_sample([11] * 16, 6)), [1, 2, 4, 8, 16], ["vanilla"])
    alone = shares[1, "vanilla"]
    before = alone
    for n in (2, 4, 8, 16):
        share = shares[n, "vanilla"]
        # A_out = S_out / (n S + S_out), with S / S_out = 1 / A - 1 beside one input.
        torch.testing.assert_close(share[0], 1 / (1 + n * (1 / alone[0] - 1)), rtol=0, atol=1e-10)
        assert (share < before).all()
        before = share


def test_inputs_read_once_for_all_n_give_what_each_n_gives_by_itself(model):
    """The longest input comes last: with it, the others stand at other positions, but at the same distances."""
    sample = make_sample([5, 9, 4, 14], 6)
    together = output_shares(model, sample, [1, 2, 4], WEIGHTINGS)
    assert together.keys() == {(n, weighting) for n in (1, 2, 4) for weighting in WEIGHTINGS}
    for n in (1, 2):
        by_itself = output_shares(model, first_inputs(sample, n), [n], WEIGHTINGS)
        for weighting in WEIGHTINGS:
            # transformers' rotary tables are float32
            torch.testing.assert_close(together[n, weighting], by_itself[n, weighting], rtol=0, atol=1e-6)


WINDOWED = {
    "window-within-the-output": 4,
    "window-within-the-input": 12,
    "window-not-reached": 64,
}


def tiny(config_type, model_type, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_type(vocab_size=64, num_hidden_layers=2, attn_implementation="eager", **sizes, **options)
    return model_type(config).double().eval()


@pytest.mark.parametrize("window", WINDOWED.values(), ids=WINDOWED)
def test_a_sliding_window_hides_the_same_keys_as_in_the_stock_model(window):
    model = tiny(MistralConfig, MistralForCausalLM, sliding_window=window)
    sample = make_sample([13], 7, vocabulary=64)
    measured = output_shares(model, repeat_first(sample, 3), [1, 3], WEIGHTINGS)
    expected = stock_share(model, sample)
    torch.testing.assert_close(measured[1, "vanilla"], expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(measured[3, "uniform"], expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(measured[3, "fid"], expected, rtol=0, atol=1e-8)
    diluted = 1 / (1 + 3 * (1 / expected[0] - 1))
    torch.testing.assert_close(measured[3, "vanilla"][0], diluted, rtol=0, atol=1e-8)


def test_capped_scores_are_measured_capped():
    model = tiny(Gemma2Config, Gemma2ForCausalLM, head_dim=8, attn_logit_softcapping=0.5, query_pre_attn_scalar=8)
    sample = make_sample([13], 7, vocabulary=64)
    measured = output_shares(model, repeat_first(sample, 2), [1, 2], WEIGHTINGS)
    expected = stock_share(model, sample)
    torch.testing.assert_close(measured[1, "uniform"], expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(measured[2, "uniform"], expected, rtol=0, atol=1e-8)


def test_a_model_has_its_own_attention_back_even_after_an_error(model):
    output_shares(model, make_sample([5], 3), [1], ["vanilla"])
    assert model.config._attn_implementation == "eager"
    with pytest.raises(IndexError):  # a token that the model does not have
        output_shares(model, make_sample([5], 3, vocabulary=10**6), [1], ["vanilla"])
    assert model.config._attn_implementation == "eager"


def repeat_first(sample, times=None):
    return first_inputs(sample, 1, times or len(sample.inputs))


def first_inputs(sample, number, times=1):
    return EncodedSample(sample.id, sample.inputs[:number] * times, sample.output, sample.is_trained)
