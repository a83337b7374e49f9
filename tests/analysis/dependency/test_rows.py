"""Which tokens are counted as the user's and as the response's; a token of this tokenizer is a byte."""

import numpy as np
import pytest

from misotune.analysis.dependency.rows import ConversationReader, open_source
from misotune.errors import DataError, UsageError
from misotune.layout import ChatTemplate
from misotune.samples import Sample, SampleInput


def make_sample(*messages, output="Answer.", **options):
    roles = ("system", "user", "assistant")
    turns = tuple({"role": next(r for r in roles if r[0] == m[0]), "content": m[2:]} for m in messages)
    return Sample("row", "", "", (SampleInput("full", turns),), output, **options)


def read(tokenizer, *samples, max_length=4096):
    return list(ConversationReader(ChatTemplate(tokenizer), max_length).read(samples))


def text_of(tokenizer, row, places):
    return tokenizer.decode([row.ids[i] for i in places])


def test_only_what_the_user_and_the_assistant_wrote_is_counted(tokenizer):
    # Texts that the template's own tokens hold, too.
    (row,) = read(tokenizer, make_sample("s:assistant", "u:user", output="assistant"))
    assert text_of(tokenizer, row, np.flatnonzero(row.is_user)) == "user"
    (response,) = row.responses
    assert text_of(tokenizer, row, response.places) == "assistant"
    whole = (
        "<|im_start|>system\nassistant<|im_end|>\n<|im_start|>user\nuser<|im_end|>\n<|im_start|>assistant\nassistant"
    )
    assert tokenizer.decode(row.ids) == whole
    assert (response.num_user_tokens, response.is_cut, row.texts) == (4, False, ("user",))


def test_line_breaks_and_the_ids_of_bos_and_eos_are_not_counted(tokenizer):
    (row,) = read(tokenizer, make_sample("u:a\n\nb c", output="d\r\ne<|im_end|>f"))
    assert text_of(tokenizer, row, np.flatnonzero(row.is_user)) == "ab c"
    assert text_of(tokenizer, row, row.responses[0].places) == "def"


def test_characters_of_several_tokens_are_counted_whole(tokenizer):
    (row,) = read(tokenizer, make_sample("u:日本", output="é"))
    assert row.is_user.sum() == 6
    assert len(row.responses[0].places) == 2


def test_the_output_alone_is_scored_unless_the_row_trains_on_every_turn(tokenizer):
    turns = ("u:one", "a:two", "u:three")
    alone, every = read(tokenizer, make_sample(*turns), make_sample(*turns, history_loss=True))
    assert [text_of(tokenizer, alone, r.places) for r in alone.responses] == ["Answer."]
    assert alone.texts == ("three",)
    assert [text_of(tokenizer, every, r.places) for r in every.responses] == ["two", "Answer."]
    assert [r.num_user_tokens for r in every.responses] == [3, 8]
    assert every.texts == ("one", "three")


def test_a_row_is_cut_behind_its_longest_length(tokenizer):
    sample = make_sample("u:one", "a:two", "u:three", history_loss=True)
    (whole,) = read(tokenizer, sample)
    first, last = (response.places for response in whole.responses)
    (cut,) = read(tokenizer, sample, max_length=int(last[1]) + 1)
    assert [(len(r.places), r.is_cut) for r in cut.responses] == [(3, False), (2, True)]
    (shorter,) = read(tokenizer, sample, max_length=int(first[1]) + 1)
    assert [(r.turn, len(r.places), r.is_cut) for r in shorter.responses] == [(1, 2, True)]
    assert (shorter.num_turns, len(shorter.ids)) == (2, int(first[1]) + 1)
    assert read(tokenizer, sample, max_length=int(first[0])) == [None]


@pytest.fixture
def templated(tokenizer, monkeypatch):
    """The tokenizer with another way to render a message's text."""

    def change(text):
        monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("message['content']", text))
        return tokenizer

    return change


def test_rows_with_nothing_to_score_are_left_out(tokenizer):
    assert read(tokenizer, make_sample("u:\n\n"), make_sample("u:a", output="\n")) == [None, None]


def test_rows_that_the_template_renders_otherwise_are_left_out(templated):
    assert read(templated("(message['content'] | upper)"), make_sample("u:a")) == [None]


def test_a_template_may_strip_texts(templated):
    tokenizer = templated("(message['content'] | trim)")
    (row,) = read(tokenizer, make_sample("u:  a b ", output=" c\n"))
    assert text_of(tokenizer, row, np.flatnonzero(row.is_user)) == "a b"
    assert text_of(tokenizer, row, row.responses[0].places) == "c"


def test_a_tokenizer_that_knows_no_places_is_refused(tokenizer, monkeypatch):
    reader = ConversationReader(ChatTemplate(tokenizer), 100)

    def slow(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(reader._tokens, "_tokenizer", slow)
    slow.name_or_path = "old"
    with pytest.raises(UsageError, match=r"the tokenizer of old cannot say where its tokens lie in a text; name a"):
        list(reader.read([make_sample("u:a")]))


def test_rows_come_from_the_starter_set_or_a_file(tmp_path):
    assert len(open_source(None, 2).samples) == 2
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        open_source(tmp_path / "none.jsonl", None)
