"""Chunks of a mixture: one causal text inside, closed to one another."""

import numpy as np
import pytest
import torch
from tests.conftest import CHATML, make_tokenizer
from transformers import AutoModelForCausalLM

from misotune.attention import ATTENTION_NAME, MisoArguments, register
from misotune.errors import LayoutError
from misotune.layout import ChatTemplate, build_row, encode_sample, join_samples
from misotune.samples import Sample, SampleInput


def make_sample(text, output="ok", *, system=None, prompts=1, history=(), history_loss=False):
    head = [] if system is None else [{"role": "system", "content": system}]
    entry = SampleInput("full", (*head, *history, {"role": "user", "content": text}))
    return Sample(text, "test", "", (entry,) * prompts, output, history_loss=history_loss)


CHUNK = [
    make_sample("Hello!", "Hi there.", system="Be kind."),
    make_sample("1+1?", "2", system="Calculate."),
    make_sample(
        "2+2?",
        "4",
        history=({"role": "user", "content": "Ready?"}, {"role": "assistant", "content": "Yes."}),
        history_loss=True,
    ),
    make_sample("Call it.", "<tool_call>{}</tool_call>"),
]


@pytest.fixture
def chunk(tokenizer):
    return [encode_sample(sample, ChatTemplate(tokenizer)) for sample in CHUNK]


def load(model_dir, attention):
    register()
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation=attention)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def whole(sample):
    return np.concatenate([*sample.inputs, sample.output])


def test_a_chunk_is_the_renderings_of_its_rows_one_after_the_other(tokenizer, chunk):
    joined = join_samples(chunk)
    assert whole(joined).tolist() == [token for sample in chunk for token in whole(sample)]
    assert decoded(tokenizer, whole(joined)).startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\nHi there.<|im_end|><|im_start|>system\nCalculate.<|im_end|>\n"
    )
    assert decoded(tokenizer, joined.inputs[0]) == decoded(tokenizer, chunk[0].inputs[0])
    assert build_row([joined]).position_ids.tolist() == [list(range(joined.num_tokens))]


def test_every_response_of_a_chunk_is_trained_as_it_is_alone(tokenizer, chunk):
    joined = join_samples(chunk)
    assert decoded(tokenizer, joined.output[joined.is_trained]) == (
        "Hi there.<|im_end|>2<|im_end|>Yes.<|im_end|>4<|im_end|><tool_call>{}</tool_call><|im_end|>"
    )
    row = build_row([joined])
    assert row.targets.tolist() == row.input_ids[0, row.predictors + 1].tolist()


def test_starts_divide_the_output_by_instruction(tokenizer, chunk):
    joined = join_samples(chunk)
    ends = (*joined.starts[1:], len(joined.output))
    parts = [joined.output[start:end] for start, end in zip(joined.starts, ends, strict=True)]
    assert [decoded(tokenizer, part) for part in parts] == [
        decoded(tokenizer, chunk[0].output),
        *(decoded(tokenizer, whole(sample)) for sample in chunk[1:]),
    ]
    assert joined.num_trained_by_instruction.tolist() == [sample.num_trained_tokens for sample in chunk]
    assert chunk[2].starts == (0,)  # a chat of several turns is one instruction
    assert chunk[2].num_trained_by_instruction.tolist() == [chunk[2].num_trained_tokens]


def test_joining_twice_is_joining_once(chunk):
    once, twice = join_samples(chunk), join_samples([join_samples(chunk[:2]), join_samples(chunk[2:])])
    assert whole(once).tolist() == whole(twice).tolist()
    assert (once.starts, once.id) == (twice.starts, twice.id)
    assert once.is_trained.tolist() == twice.is_trained.tolist()


def test_one_row_alone_stays_as_it_is(chunk):
    assert join_samples(chunk[:1]) is chunk[0]


def test_bos_begins_a_chunk_once(tokenizer):
    with_bos = make_tokenizer("{{ '<|pad|>' }}" + CHATML)
    with_bos.bos_token = "<|pad|>"
    encoded = [encode_sample(sample, ChatTemplate(with_bos)) for sample in CHUNK]
    joined = join_samples(encoded, with_bos.bos_token_id)
    plain = join_samples([encode_sample(sample, ChatTemplate(tokenizer)) for sample in CHUNK])
    assert whole(joined).tolist() == [with_bos.bos_token_id, *whole(plain).tolist()]
    assert joined.starts == plain.starts
    assert joined.num_trained_by_instruction.tolist() == plain.num_trained_by_instruction.tolist()


def test_a_turn_s_mark_that_is_called_bos_stays(tokenizer, chunk):
    """So in SmolLM2, whose BOS token is `<|im_start|>`."""
    mark = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert whole(join_samples(chunk, mark)).tolist() == whole(join_samples(chunk)).tolist()


def test_a_row_of_several_inputs_is_refused_with_the_cure(tokenizer, chunk):
    several = encode_sample(make_sample("A", prompts=2), ChatTemplate(tokenizer))
    message = r"one of its rows has several inputs; set miso.mode=sft, or prepare the mixture with n_mix: 1"
    with pytest.raises(LayoutError, match=message):
        join_samples([*chunk, several])


def test_a_chunk_is_cut_behind_its_last_whole_instruction(chunk):
    joined = join_samples(chunk)
    for length in range(len(joined.inputs[0]) + 1, joined.num_tokens):
        cut = joined.cut(length)
        if cut is None:
            continue
        assert cut.num_tokens <= length
        assert joined.starts[: len(cut.starts)] == cut.starts
        assert cut.num_trained_by_instruction.min() > 0
        assert cut.num_trained_by_instruction.sum() == cut.num_trained_tokens


@pytest.mark.parametrize("kernel", ["auto", "eager", "reference"])
def test_later_instructions_see_earlier_ones_and_chunks_see_nothing_of_one_another(tiny_model_dir, chunk, kernel):
    model = load(tiny_model_dir, ATTENTION_NAME)
    chunks = [join_samples(chunk), join_samples(chunk[::-1])]
    row = build_row(chunks)
    spans = [sample.whole for sample in row.layout.samples]

    def logits(input_ids):
        with torch.no_grad():
            miso = MisoArguments(row.layout, "uniform", kernel)
            return model(input_ids, position_ids=row.position_ids, miso=miso, use_cache=False).logits[0]

    def changed(at):
        other = row.input_ids.clone()
        other[0, at] = 65 if other[0, at] != 65 else 66
        return (logits(other) - before).abs().amax(dim=-1) > 1e-6

    before = logits(row.input_ids)
    for first, second in ((0, 1), (1, 0)):
        at = spans[first].start + 3  # in the chunk's first instruction
        differs = changed(at)
        assert not differs[spans[second].start : spans[second].stop].any()
        assert not differs[spans[first].start : at].any()
        last = len(chunks[first].inputs[0]) + chunks[first].starts[-1] + spans[first].start
        assert differs[last : spans[first].stop].any()


def test_a_chunk_has_the_logits_of_plain_causal_attention(tiny_model_dir, chunk):
    joined = join_samples(chunk)
    row = build_row([joined, *chunk])
    ours = load(tiny_model_dir, ATTENTION_NAME)
    stock = load(tiny_model_dir, "eager")
    with torch.no_grad():
        miso = MisoArguments(row.layout, "uniform", "auto")
        got = ours(row.input_ids, position_ids=row.position_ids, miso=miso, use_cache=False).logits[0]
        expected = stock(torch.as_tensor(whole(joined).astype(np.int64))[None]).logits[0]
    torch.testing.assert_close(got[: joined.num_tokens], expected, rtol=1e-5, atol=1e-5)
