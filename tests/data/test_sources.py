import pytest

from misotune.data.records import BadRowError, SkippedRowError
from misotune.data.sources.chat import ENDING_CUT, OPENING_CUT, chat_record
from misotune.data.sources.columns import columns_record
from misotune.data.sources.crab import crab_record
from misotune.data.sources.fields import JOINS, RowContext, template_chooser
from misotune.data.sources.r1 import r1_record
from misotune.data.sources.registry import SOURCES, find_source
from misotune.errors import UsageError

CONTEXT = RowContext("src", "src-7", template_chooser("bullets", 0))


def talk(*turns):
    return [{"from": who, "value": text} for who, text in turns]


def test_a_chat_keeps_its_system_message_and_trains_on_every_answer():
    turns = talk(("system", "S"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
    record = chat_record({"id": "x", "conversations": turns}, CONTEXT)
    assert [message["role"] for message in record.history] == ["system", "user", "assistant"]
    assert (record.instruction, record.output, record.history_loss) == ("c", "d", True)


def test_a_single_question_needs_no_loss_on_history():
    record = chat_record(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, CONTEXT
    )
    assert (record.history, record.history_loss, record.id) == ((), False, "src-7")


def test_a_chat_torn_out_of_a_longer_one_is_cut_to_whole_pairs():
    turns = talk(("gpt", "z"), ("human", "a"), ("gpt", "b"), ("human", "c"))
    record = chat_record({"conversations": turns}, CONTEXT)
    assert (record.instruction, record.output) == ("a", "b")
    assert record.notes == (OPENING_CUT, ENDING_CUT)


def test_text_in_parts_is_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]}
    assert chat_record(row, CONTEXT).instruction == "ab"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "no column 'messages' or 'conversations' (the row has text)"),
        ({"messages": "a"}, "'messages' must be a list of turns"),
        ({"messages": ["a"]}, "a turn must have a role and a text"),
        ({"conversations": talk(("human", "a"), ("alien", "b"))}, "unknown role 'alien'"),
        ({"conversations": talk(("human", "a"), ("gpt", 3))}, "the text of a turn must be a string, it is 3"),
        (
            {"conversations": talk(("human", "a"), ("human", "b"), ("gpt", "c"))},
            "turn 2 of the chat is the user's",
        ),
        (
            {"conversations": talk(("human", "a"), ("gpt", " "))},
            "turn 2 of the chat, the assistant's, is empty",
        ),
        ({"conversations": talk(("gpt", "a"), ("human", "b"))}, "no user turn with an answer"),
        ({"messages": []}, "no user turn with an answer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]},
            "a turn has a part that is not text",
        ),
    ],
)
def test_a_bad_chat_is_refused_with_its_reason(row, reason):
    with pytest.raises(BadRowError) as caught:
        chat_record(row, CONTEXT)
    assert reason in str(caught.value)


def test_any_rows_with_instruction_constraints_and_output_are_read():
    row = {
        "id": 3,
        "domain": "geo",
        "instruction": "Name it.",
        "input": "The Rhine.",
        "constraints": ["Be brief."],
        "output": "o",
    }
    record = columns_record(row, CONTEXT)
    assert (record.id, record.domain, record.output) == ("3", "geo", "o")
    assert record.template.render(record.instruction, record.constraints) == "Name it.\n\nThe Rhine.\n\n- Be brief."


def test_constraints_may_be_missing_and_messages_do_as_well():
    assert columns_record({"instruction": "a", "output": "b"}, CONTEXT).constraints == ()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert columns_record({"messages": turns}, CONTEXT).rule == "chat"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, "no columns 'instruction' and 'output', nor 'messages' (the row has prompt)"),
        ({"instruction": "a"}, "no column 'output' (the row has instruction)"),
        ({"instruction": "a", "output": " \n"}, "'output' is empty"),
        ({"instruction": "a", "output": 4}, "'output' must be text, it is 4"),
        ({"instruction": ["a"], "output": "b"}, "'instruction' must be text"),
        ({"instruction": "a", "input": 1, "output": "b"}, "'input' must be text, it is 1"),
        (
            {"instruction": "a", "constraints": "c", "output": "b"},
            "'constraints' must be a list of texts, it is 'c'",
        ),
        (
            {"instruction": "a", "constraints": ["c", ""], "output": "b"},
            "constraints[1] must be text that is not empty",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(row, reason):
    with pytest.raises(BadRowError) as caught:
        columns_record(row, CONTEXT)
    assert reason in str(caught.value)


def test_joins_render_as_lines_bullets_and_one_paragraph():
    rendered = {join: template_chooser(join, 0)("id").render("Do it.", ["A.", "B."]) for join in JOINS}
    assert rendered["lines"] == "Do it.\n\nA.\nB."
    assert rendered["bullets"] == "Do it.\n\n- A.\n- B."
    assert rendered["paragraph"] == "Do it. A. B."
    assert rendered["mixed"] in {rendered["lines"], rendered["bullets"], rendered["paragraph"]}


def test_mixed_joins_depend_on_id_and_seed_alone_and_use_all_three():
    ids = [f"row-{i}" for i in range(60)]
    first, again, other = (list(map(template_chooser("mixed", seed), ids)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) == 3


def test_thinking_and_options_belong_to_the_input_of_a_trace():
    row = {"question": "Why?", "options": ["x", "y"], "reasoning": "hm\n", "answer_text": "B"}
    record = r1_record(row, CONTEXT)
    assert record.instruction == "Why?\n\nA. x\nB. y\n\n<think>\nhm\n</think>"
    assert (record.output, record.constraints) == ("B", ())
    with pytest.raises(BadRowError, match="no column 'reasoning' or 'think' or 'reasoning_content'"):
        r1_record({"question": "Why?", "answer": "B"}, CONTEXT)


def crab_row(identity, *texts, source="alpaca"):
    roles = ("user", "assistant") * (len(texts) // 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return {"id": identity, "cnt_id": 1, "source": source, "messages": messages}


def test_a_crab_forward_row_is_split_and_keeps_its_demonstrations():
    record = crab_record(crab_row("1_forward", "q", "a", "Name a river.\n\n* Be brief.", "Rhine"), CONTEXT)
    assert [message["content"] for message in record.history] == ["q", "a"]
    assert (record.instruction, record.constraints, record.domain) == (
        "Name a river.",
        ("Be brief.",),
        "alpaca",
    )
    assert not record.history_loss


def test_a_crab_row_that_no_template_fits_has_one_input_with_the_reason():
    record = crab_record(crab_row("1_forward", "What is it?", "Rhine"), CONTEXT)
    assert (record.instruction, record.constraints, record.one_input) == (
        "What is it?",
        (),
        "no template fits",
    )


def test_crab_reverse_rows_are_left_out_and_chats_train_on_every_answer():
    with pytest.raises(SkippedRowError, match="reverse row"):
        crab_record(crab_row("1_reverse", "q", "a"), CONTEXT)
    record = crab_record(crab_row("1", "a", "b", "c\n\n* d", "e", source="sharegpt"), CONTEXT)
    assert (record.history_loss, record.constraints, record.one_input) == (True, (), "chat")


def test_the_seed_form_keeps_constraints_apart_and_the_longer_instruction():
    row = crab_row("9", "Name one big river.", "Rhine")
    row["Aug_instruction"] = {
        "Refined_Instruction": "Name one big river in Europe.",
        "Additional_Instruction": {"Tone": "Be formal.", "Length": "Be brief.", "Unused": None},
    }
    record = crab_record(row, CONTEXT)
    assert (record.instruction, record.constraints) == (
        "Name one big river in Europe.",
        ("Be formal.", "Be brief."),
    )
    row["Aug_instruction"]["Refined_Instruction"] = "Name it."
    assert crab_record(row, CONTEXT).instruction == "Name one big river."
    row["Aug_instruction"] = {"Refined_Instruction": "x"}
    with pytest.raises(BadRowError, match="needs 'Refined_Instruction' and 'Additional_Instruction'"):
        crab_record(row, CONTEXT)
    row["Aug_instruction"] = {"Additional_Instruction": {"Tone": 5}}
    with pytest.raises(BadRowError, match="is not text: 5"):
        crab_record(row, CONTEXT)


def test_a_source_is_found_by_name_path_or_hub_id(tmp_path):
    assert find_source("crab").hub_id == "THU-KEG/Crab-SFT"
    assert find_source("crab", tmp_path / "x.jsonl").path == tmp_path / "x.jsonl"
    assert find_source(str(tmp_path / "rows.v1.jsonl.gz")).name == "rows.v1"
    hub = find_source("allenai/tulu-3")
    assert (hub.name, hub.hub_id) == ("tulu-3", "allenai/tulu-3")
    assert set(SOURCES) == {"crab", "sharegpt", "r1", "starter"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("craab", None, "unknown source 'craab': did you mean 'crab'"),
        (
            "zzz",
            None,
            "unknown source 'zzz': allowed are crab, sharegpt, r1, starter, a data file, or a hub id",
        ),
        ("r1", None, "source 'r1' needs a file: misotune prepare r1 --data FILE"),
        ("rows.jsonl", "rows.jsonl", "--data belongs to a named source"),
    ],
)
def test_an_unknown_source_is_one_line_with_what_is_allowed(name, data, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        find_source(name, tmp_path / data if data else None)
    assert message in str(caught.value)
