import numpy as np
import pytest
import torch
from tests.preview.conftest import make_chat, make_row

from misotune.attention.reference import reference_attention
from misotune.errors import LayoutError
from misotune.layout import Chunking, RowLayout, encode_sample
from misotune.preview.reading import Encoded, Reading
from misotune.preview.rows import view_rows
from misotune.samples import Sample, SampleInput, select_inputs


def ids_of(segment):
    return [token.id for token in segment.tokens]


def flags_of(segment):
    return [token.is_trained for token in segment.tokens]


@pytest.mark.parametrize(
    "row", [make_row(), make_chat(), make_row(inputs=(("full", "one"),))], ids=["para", "chat", "one"]
)
def test_what_is_shown_is_what_encode_sample_gives(row, template, make_reading):
    (view,) = view_rows([row], make_reading(), "row 1").samples
    encoded = encode_sample(row, template)
    assert [ids_of(segment) for segment in view.segments] == [x.tolist() for x in (*encoded.inputs, encoded.output)]
    assert flags_of(view.segments[-1]) == encoded.is_trained.tolist()
    assert not any(flag for segment in view.segments[:-1] for flag in flags_of(segment))
    assert [segment.role for segment in view.segments] == [*encoded.roles, "output"]
    assert (view.num_tokens, view.num_trained) == (encoded.num_tokens, encoded.num_trained_tokens)
    assert view.longest_pair == encoded.longest_pair


def test_positions_are_those_of_the_layout(make_reading):
    (view,) = view_rows([make_row()], make_reading(), "").samples
    ends = {segment.tokens[-1].position for segment in view.segments[:-1]}
    assert len(ends) == 1, "aligned inputs end where the output begins"
    assert view.segments[-1].tokens[0].position == ends.pop() + 1
    (view,) = view_rows([make_row()], make_reading(positions="start"), "").samples
    assert [segment.tokens[0].position for segment in view.segments[:-1]] == [0, 0, 0]


def test_an_input_of_the_role_constraint_names_it(make_reading):
    (view,) = view_rows([make_row()], make_reading(), "").samples
    assert [segment.constraint for segment in view.segments] == [None, "Be brief.", None, None]


def test_weights_are_equal_or_by_role_or_not_fixed(make_reading):
    (view,) = view_rows([make_row()], make_reading(), "").samples
    assert [segment.weight for segment in view.segments] == [1 / 3, 1 / 3, 1 / 3, None]
    reading = make_reading(weighting="fixed", shares={"full": 0.5})
    (view,) = view_rows([make_row()], reading, "").samples
    assert [segment.weight for segment in view.segments[:-1]] == [0.5, 0.25, 0.25]
    (view,) = view_rows([make_row()], make_reading(weighting="fid"), "").samples
    assert {segment.weight for segment in view.segments} == {None}


def test_succ_shows_the_chunks_of_the_first_epoch(template, make_reading):
    row = make_row(inputs=(("chunked", "a long question " * 9),))
    chunking = Chunking({3: 1.0}, seed=0)
    (view,) = view_rows([row], make_reading("succ", "successive", chunking=chunking), "").samples
    cut = chunking.cut(encode_sample(row, template), epoch=0)
    assert [ids_of(segment) for segment in view.segments] == [x.tolist() for x in (*cut.inputs, cut.output)]
    assert [segment.role for segment in view.segments] == ["chunk 1 of 3", "chunk 2 of 3", "chunk 3 of 3", "output"]
    positions = [token.position for segment in view.segments for token in segment.tokens]
    assert positions == list(range(cut.num_tokens))


def test_flat_shows_a_sample_for_each_input(template, make_reading):
    row = make_row()
    views = view_rows([row], make_reading("flat"), "").samples
    samples = select_inputs(row, "flat", ("full", "constraint", "base"))
    assert [view.id for view in views] == ["r#0", "r#1", "r#2"]
    for view, sample in zip(views, samples, strict=True):
        assert ids_of(view.segments[0]) == encode_sample(sample, template).inputs[0].tolist()
    assert views[1].segments[0].constraint == "Be brief."


def test_runs_part_the_turns_of_a_chat(make_reading):
    (view,) = view_rows([make_chat()], make_reading(), "").samples
    runs = view.segments[-1].runs()
    assert [run.is_trained for run in runs] == [False, True, False, True]
    texts = ["".join(token.text for token in run.tokens) for run in runs]
    assert texts[1] == "first<|im_end|>"
    assert texts[3] == "second<|im_end|>"
    assert sum((run.tokens for run in runs), ()) == view.segments[-1].tokens


def test_a_chunk_of_rows_is_one_sample_with_a_run_for_each_instruction(make_reading):
    rows = [make_row(f"r{i}", inputs=(("full", f"question {i}"),), output=f"answer {i}", chunk="c") for i in range(3)]
    view = view_rows(rows, make_reading("sft"), "")
    assert view.name == "chunk c of 3 rows"
    (sample,) = view.samples
    trained = [run for run in sample.segments[-1].runs() if run.is_trained]
    assert [run.instruction for run in trained] == [1, 2, 3]
    answers = ["".join(token.text for token in run.tokens) for run in trained]
    assert answers == [f"answer {i}<|im_end|>" for i in range(3)]
    others = [run for run in sample.segments[-1].runs() if not run.is_trained]
    assert "question 1" in "".join(token.text for token in others[1].tokens)


def test_the_picture_is_what_attention_does(make_reading):
    """A value that the result of a query depends on is one that the query attends to: by the paper's equations."""
    row = make_row(inputs=(("full", "a b"), ("constraint", "a"), ("base", "")), output="c")
    (view,) = view_rows([row], make_reading(), "").samples
    layout = RowLayout((view.spans,))
    torch.manual_seed(0)
    q, k, v = (torch.randn(view.num_tokens, 1, 4, dtype=torch.float64) for _ in range(3))
    seen = torch.autograd.functional.jacobian(
        lambda values: reference_attention(q, k, values.expand_as(v), layout).sum(dim=(1, 2)), v
    )
    drawn = np.zeros((view.num_tokens, view.num_tokens), dtype=bool)
    for queries, keys, is_causal in view.attention():
        a, b = view.segment_spans[queries], view.segment_spans[keys]
        drawn[a.tokens, b.tokens] = np.tril(np.ones((len(a), len(b)))) if is_causal else True
    np.testing.assert_array_equal(drawn, (seen.abs().sum(dim=(2, 3)) > 1e-12).numpy())


def test_a_row_over_the_limits_is_shown_whole_with_the_reason(make_reading):
    view = view_rows([make_row()], make_reading(max_length=10), "")
    (sample,) = view.samples
    assert sample.note == "training drops this sample: too long"
    assert sample.num_trained > 0
    assert view.problem is None


def test_a_row_whose_output_is_cut_is_shown_cut(template, make_reading):
    def encode(rows):
        return Encoded([encode_sample(rows[0], template).cut(60)], num_cut=1)

    row = make_row(inputs=(("full", "q"),), output="long " * 40)
    reading = make_reading()
    reading = type(reading)(template, "para", reading.roles, "aligned", encode, reading.encode_whole)
    (sample,) = view_rows([row], reading, "").samples
    whole = encode_sample(row, template)
    assert sample.longest_pair == 60
    assert sample.note == (f"training cuts the last {whole.longest_pair - 60} tokens of the output, to data.max_length")


def test_a_row_that_cannot_be_encoded_gives_the_reason(template):
    def encode(rows):
        return Encoded([], {"the response has no tokens": (1, rows[0].id)})

    reading = Reading(template, "para", ("full",), "aligned", encode, encode)
    view = view_rows([make_row()], reading, "")
    assert (view.samples, view.problem) == ((), "the response has no tokens")


def test_a_row_without_the_input_that_the_mode_needs_gives_the_reason(make_reading):
    view = view_rows([make_row(inputs=(("base", "x"),))], make_reading("sft"), "")
    assert view.samples == ()
    assert "needs an input of role 'full'" in view.problem


def test_encode_sample_itself_refuses_such_rows(template):
    """What the tests above take for granted."""
    entry = SampleInput("full", ({"role": "user", "content": "q"},))
    with pytest.raises(LayoutError):
        encode_sample(Sample("x", "", "", (entry, entry), "y", history_loss=True), template)
