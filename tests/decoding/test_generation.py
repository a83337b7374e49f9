"""Multi-input decoding against teacher-forced forwards, stock transformers, and greedy decoding by hand."""

import pytest
import torch
from tests.conftest import CHATML, make_tokenizer
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from misotune.attention import ATTENTION_NAME, MisoArguments
from misotune.decoding import generate
from misotune.decoding.streaming import TextCallback
from misotune.errors import LayoutError, RunError, UnsupportedModelError, UsageError
from misotune.layout import RowLayout

INPUTS = ["Name three rivers of the north", "Why?", "A rhyme on soup, please, and be quick"]
WEIGHTS = {"uniform": None, "fid": None, "vanilla": None, "fixed": (0.5, 0.3, 0.2)}
NUM_NEW = 14


def rendered(tokenizer, text):
    """An input's ids by the template itself, without generation prompt."""
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False)


def opening(tokenizer):
    return tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]


def miso_layout(lengths, num_output, positions, weights):
    layout = RowLayout.from_lengths([(lengths, num_output)], positions)
    return RowLayout((layout.samples[0]._replace(weights=tuple(weights or ())),), positions)


def teacher_forced(model, tokenizer, inputs, response, *, weighting, weights=None, positions="aligned", kernel="auto"):
    """The logits before each response token, from one forward over the whole row [x_1 .. x_n, y]."""
    parts = [rendered(tokenizer, text) for text in inputs]
    output = [*opening(tokenizer), *response[:-1]]
    layout = miso_layout([len(part) for part in parts], len(output), positions, weights)
    ids = torch.tensor([[token for part in (*parts, output) for token in part]])
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        with torch.no_grad():
            logits = model(
                ids,
                position_ids=layout.position_ids[None],
                miso=MisoArguments(layout, weighting, kernel),
                use_cache=False,
            ).logits[0]
    finally:
        model.set_attn_implementation(before)
    return logits[-len(response) :]


class Calls:
    """What a model's forward calls were given and returned: `generate` itself keeps logits in float32."""

    def __init__(self, model):
        self.num_tokens, self.position_ids, self.logits = [], [], []
        self._handle = model.register_forward_hook(self, with_kwargs=True)

    def __call__(self, model, args, kwargs, output):
        self.num_tokens.append(kwargs["input_ids"].shape[1])
        self.position_ids.extend(kwargs["position_ids"][0].tolist())
        self.logits.append(output.logits[0, -1])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._handle.remove()


def decode(model, tokenizer, inputs=INPUTS, **options):
    """Returns the generation and what its forward calls saw, with a fixed seed."""
    torch.manual_seed(1)
    with Calls(model) as calls:
        found = generate(model, tokenizer, inputs, **{"max_new_tokens": NUM_NEW, **options})
    return found, calls


SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 50}


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_each_tokens_logits_equal_a_teacher_forced_forward(any_model, tokenizer, weighting, options):
    weights = WEIGHTS[weighting]
    found, calls = decode(any_model, tokenizer, weighting=weighting, weights=weights, **options)
    assert len(calls.logits) == len(found.token_ids) > 1
    for kernel in ("auto", "reference"):
        expected = teacher_forced(
            any_model, tokenizer, INPUTS, found.token_ids, weighting=weighting, weights=weights, kernel=kernel
        )
        torch.testing.assert_close(torch.stack(calls.logits), expected, rtol=1e-10, atol=1e-9)


def test_weightings_inputs_and_weights_all_change_what_is_decoded(any_model, tokenizer):
    """So that the agreement above compares things that differ."""
    first = [
        decode(any_model, tokenizer, inputs, weighting=weighting, weights=weights)[1].logits[0]
        for inputs, weighting, weights in (
            (INPUTS, "uniform", None),
            (INPUTS, "fid", None),
            (INPUTS, "vanilla", None),
            (INPUTS, "fixed", (0.5, 0.3, 0.2)),
            (INPUTS, "fixed", (0.2, 0.3, 0.5)),
            (INPUTS[:2], "uniform", None),
        )
    ]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(first) for b in first[:i])


@pytest.mark.parametrize("positions", ["aligned", "start", "successive"])
def test_each_position_scheme_equals_the_teacher_forced_forward(llama, tokenizer, positions):
    found, calls = decode(llama, tokenizer, positions=positions)
    expected = teacher_forced(llama, tokenizer, INPUTS, found.token_ids, weighting="uniform", positions=positions)
    torch.testing.assert_close(torch.stack(calls.logits), expected, rtol=1e-10, atol=1e-9)
    lengths = [len(rendered(tokenizer, text)) for text in INPUTS]
    output = len(opening(tokenizer)) + len(found.token_ids) - 1
    assert calls.position_ids == RowLayout.from_lengths([(lengths, output)], positions).position_ids.tolist()


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_one_input_equals_stock_generate(any_model, tokenizer, options):
    """Stock: attention with its own masks, and a cache that drops the keys outside each window."""
    prompt = torch.tensor([[*rendered(tokenizer, INPUTS[2]), *opening(tokenizer)]])
    torch.manual_seed(1)
    with Calls(any_model) as stock:
        output = any_model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NUM_NEW, **options)
    found, calls = decode(any_model, tokenizer, INPUTS[2:], **options)
    assert list(found.token_ids) == output[0, prompt.shape[1] :].tolist()
    atol = 1e-4 if any_model.config._attn_implementation == "eager" else 1e-9  # eager's softmax is in float32
    torch.testing.assert_close(torch.stack(calls.logits), torch.stack(stock.logits), rtol=1e-10, atol=atol)


def test_inputs_are_computed_once_and_then_one_token_at_a_time(llama, tokenizer):
    found, calls = decode(llama, tokenizer)
    row = sum(len(rendered(tokenizer, text)) for text in INPUTS) + len(opening(tokenizer))
    assert calls.num_tokens == [row] + [1] * (NUM_NEW - 1)
    assert found.prompt.num_tokens == row


@pytest.mark.parametrize("options", [{"kernel": "reference"}, {"use_cache": False}, {"kernel": "eager"}], ids=str)
def test_other_kernels_and_no_cache_decode_the_same(any_model, tokenizer, options):
    expected, cached = decode(any_model, tokenizer)
    found, calls = decode(any_model, tokenizer, **options)
    assert found.token_ids == expected.token_ids
    torch.testing.assert_close(torch.stack(calls.logits), torch.stack(cached.logits), rtol=1e-10, atol=1e-9)


def test_a_shared_prefix_is_read_in_front_of_every_input(llama, tokenizer):
    found, _ = decode(llama, tokenizer, shared_prefix="Be brief.")
    expected, _ = decode(llama, tokenizer, [f"Be brief.\n\n{text}" for text in INPUTS])
    assert found.prompt == expected.prompt
    assert found.token_ids == expected.token_ids


def test_equal_inputs_decode_like_one_except_under_vanilla(llama, tokenizer):
    one, _ = decode(llama, tokenizer, INPUTS[:1])
    for weighting in ("uniform", "fid"):
        assert decode(llama, tokenizer, INPUTS[:1] * 4, weighting=weighting)[0].token_ids == one.token_ids
    assert decode(llama, tokenizer, INPUTS[:1] * 4, weighting="vanilla")[0].token_ids != one.token_ids


def test_a_repetition_penalty_counts_the_tokens_of_all_inputs_and_the_response(llama, tokenizer):
    found, _ = decode(llama, tokenizer, repetition_penalty=1.7)
    parts = [rendered(tokenizer, text) for text in INPUTS]
    row = [token for part in (*parts, opening(tokenizer)) for token in part]
    penalty = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7)])
    response = []
    while len(response) < NUM_NEW:
        logits = teacher_forced(llama, tokenizer, INPUTS, [*response, 0], weighting="uniform")[-1:].float()
        response.append(int(penalty(torch.tensor([row + response]), logits).argmax()))
    assert list(found.token_ids) == response
    assert found.token_ids != decode(llama, tokenizer)[0].token_ids


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.has_ended = [], False

    def put(self, value):
        self.values.append(value.flatten().tolist())

    def end(self):
        self.has_ended = True


def test_a_streamer_gets_the_row_and_then_each_token(llama, tokenizer):
    streamer = Recorder()
    found, _ = decode(llama, tokenizer, streamer=streamer)
    assert streamer.values == [found.prompt.token_ids, *([token] for token in found.token_ids)]
    assert streamer.has_ended


def test_streamed_text_is_the_responses_text(llama, tokenizer):
    pieces = []
    found, _ = decode(llama, tokenizer, streamer=TextCallback(tokenizer, pieces.append))
    assert "".join(pieces) == found.text
    assert found.text


def test_an_end_of_turn_ends_the_response(llama, tokenizer):
    whole, _ = decode(llama, tokenizer)
    assert whole.is_cut
    end = next(i for i in range(1, NUM_NEW) if whole.token_ids[i] not in whole.token_ids[:i])
    found, _ = decode(llama, tokenizer, eos_token_id=whole.token_ids[end])
    assert found.token_ids == whole.token_ids[: end + 1]
    assert not found.is_cut


def test_the_templates_end_of_turn_ends_a_response_although_only_another_is_declared(llama, tokenizer):
    llama.generation_config.eos_token_id = 258
    with torch.no_grad():  # whatever it read, the model now says the end of turn
        llama.lm_head.weight.zero_()
        llama.lm_head.weight[257] = 0.0
    llama.lm_head.bias = torch.nn.Parameter(torch.zeros(259, dtype=torch.float64).index_fill_(0, torch.tensor(257), 9))
    found, _ = decode(llama, tokenizer)
    assert found.token_ids == (257,)
    assert (found.text, found.is_cut) == ("", False)


class AfterTokens(StoppingCriteria):
    def __init__(self, count):
        self.count = count

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((1,), input_ids.shape[1] >= self.count)


def test_stopping_criteria_see_the_row_and_end_the_response(llama, tokenizer):
    whole, _ = decode(llama, tokenizer)
    criteria = StoppingCriteriaList([AfterTokens(whole.prompt.num_tokens + 3)])
    assert decode(llama, tokenizer, stopping_criteria=criteria)[0].token_ids == whole.token_ids[:3]


def test_stop_strings_end_the_response(llama, tokenizer):
    whole, _ = decode(llama, tokenizer)
    end = next(i for i, token in enumerate(whole.token_ids) if tokenizer.decode([token]).isalpha())
    found, _ = decode(llama, tokenizer, stop_strings=[tokenizer.decode([whole.token_ids[end]])])
    assert found.token_ids == whole.token_ids[: end + 1]
    assert end + 1 < NUM_NEW


def test_a_generation_config_and_the_models_own_are_used(llama, tokenizer):
    expected, _ = decode(llama, tokenizer)
    torch.manual_seed(1)
    config = GenerationConfig(max_new_tokens=5)
    assert generate(llama, tokenizer, INPUTS, generation_config=config).token_ids == expected.token_ids[:5]
    llama.generation_config.max_new_tokens = 4
    assert generate(llama, tokenizer, INPUTS).token_ids == expected.token_ids[:4]
    llama.generation_config.max_new_tokens = None
    with pytest.raises(RunError, match="with 512 new tokens they exceed"):
        generate(llama, tokenizer, INPUTS)


def test_what_transformers_returns_is_handed_on(llama, tokenizer):
    found, calls = decode(llama, tokenizer, return_dict_in_generate=True, output_logits=True)
    assert tuple(found.output.sequences[0].tolist()) == (*found.prompt.token_ids, *found.token_ids)
    torch.testing.assert_close(torch.cat(found.output.logits), torch.stack(calls.logits).float())


def test_the_models_attention_is_restored_whatever_happens(llama, tokenizer):
    generate(llama, tokenizer, INPUTS, max_new_tokens=2)
    assert (llama.config._attn_implementation, len(llama._forward_pre_hooks)) == ("sdpa", 0)
    with pytest.raises(ZeroDivisionError):
        generate(llama, tokenizer, INPUTS, max_new_tokens=2, logits_processor=[lambda ids, scores: 1 / 0])
    assert (llama.config._attn_implementation, len(llama._forward_pre_hooks)) == ("sdpa", 0)


def test_a_logits_processors_own_call_of_the_model_is_refused_instead_of_taken_for_the_row(llama, tokenizer):
    with pytest.raises(ValueError, match="attention 'miso' needs model"):
        generate(llama, tokenizer, INPUTS, max_new_tokens=2, logits_processor=[lambda ids, scores: llama(ids).logits])


def test_a_peft_model_decodes_like_its_merged_copy(llama, tokenizer):
    from peft import LoraConfig, get_peft_model

    before, _ = decode(llama, tokenizer)
    torch.manual_seed(0)
    tuned = get_peft_model(llama, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    found = generate(tuned, tokenizer, INPUTS, max_new_tokens=NUM_NEW)
    merged, _ = decode(tuned.merge_and_unload(), tokenizer)
    assert found.token_ids == merged.token_ids != before.token_ids


def test_a_context_that_is_too_short_is_refused_with_the_room_there_is(llama, tokenizer):
    longest = max(len(rendered(tokenizer, text)) for text in INPUTS) + len(opening(tokenizer))
    room = 512 - longest
    with pytest.raises(
        RunError, match=rf"take up {longest} positions .*context of 512: lower max_new_tokens to {room}"
    ):
        generate(llama, tokenizer, INPUTS, max_new_tokens=room + 1)
    with pytest.raises(RunError, match="positions='successive'"):
        generate(llama, tokenizer, INPUTS, max_new_tokens=room, positions="successive")
    with pytest.raises(RunError, match="shorten the inputs"):
        generate(llama, tokenizer, ["x" * 600], max_new_tokens=1)


WRONG = {
    "weighting": ({"weighting": "mean"}, "weighting 'mean' is not one of uniform, fixed, fid, vanilla"),
    "positions": ({"positions": "left"}, "positions 'left' is not one of aligned, start, successive"),
    "kernel": ({"kernel": "fast"}, "kernel 'fast' is not one of auto, flash, eager, reference"),
    "no-weights": ({"weighting": "fixed"}, "weighting 'fixed' needs weights: a positive number for each input"),
    "weights-without-fixed": ({"weights": [0.5, 0.3, 0.2]}, "weights belong to weighting 'fixed', not to 'uniform'"),
    "too-few-weights": ({"weighting": "fixed", "weights": [0.5, 0.5]}, "weights 0.5, 0.5: 3 inputs need 3 positive"),
    "sum": ({"weighting": "fixed", "weights": [0.5, 0.5, 0.5]}, "3 positive numbers of sum 1"),
    "nan": ({"weighting": "fixed", "weights": [float("nan"), 0.5, 0.5]}, "weights nan, 0.5, 0.5: 3 inputs need"),
    "beams": ({"num_beams": 2}, "greedy or samples; beam search is not supported"),
    "responses": ({"num_return_sequences": 2, "do_sample": True}, "call generate once for each response"),
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale=2.0 runs the model on a second prompt"),
    "length": ({"max_length": 50}, "max_length would count the tokens of all inputs; use max_new_tokens"),
    "no-tokens": ({"max_new_tokens": 0}, "`max_new_tokens` must be greater than 0, but is 0"),
    "prefix": ({"shared_prefix": ""}, "the shared prefix is empty; leave it out"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_by_name(llama, tokenizer, options, message):
    with pytest.raises(UsageError, match=message):
        generate(llama, tokenizer, INPUTS, **options)


def test_a_tokenizer_without_template_is_refused_with_the_cure(llama):
    with pytest.raises(UsageError, match=r"has no chat template.*or set tokenizer\.chat_template"):
        generate(llama, make_tokenizer(chat_template=None), INPUTS)


def test_a_template_that_opens_outputs_differently_is_refused(llama):
    template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>' + messages[0]['content'][:1]")
    assert template != CHATML
    with pytest.raises(LayoutError, match="the inputs do not share one generation prompt"):
        generate(llama, make_tokenizer(chat_template=template), INPUTS)


def test_a_model_and_tokenizer_that_name_no_end_are_refused(llama):
    tokenizer = make_tokenizer(chat_template=CHATML.replace("<|im_end|>", "").replace("<|im_start|>", ""))
    tokenizer.eos_token = None
    llama.generation_config.eos_token_id = None
    with pytest.raises(UsageError, match="names an end-of-sequence token; pass eos_token_id"):
        generate(llama, tokenizer, INPUTS)


def test_a_model_without_the_attention_interface_is_refused(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(type(llama), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM does not take its attention from"):
        generate(llama, tokenizer, INPUTS, max_new_tokens=2)
