import pickle
from collections import Counter

import pytest

from misotune.data.files import read_rows
from misotune.data.records import BadRowError, SkippedRowError
from misotune.data.sources.chat import EARLIER_THINKING_CUT, ENDING_CUT, OPENING_CUT, chat_record
from misotune.data.sources.columns import columns_record
from misotune.data.sources.constraints import LISTED, NOTHING_ELSE, ONLY_IDS, PARTLY_FOUND
from misotune.data.sources.crab import REVERSE, crab_record
from misotune.data.sources.fields import JOINS, RowContext, template_chooser
from misotune.data.sources.r1 import r1_record
from misotune.data.sources.registry import SOURCES, find_source
from misotune.data.sources.turns import TOOLS_AS_TEXT
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
        ({"prompt": "a"}, "no column for the output (the row has prompt; and no other column with text)"),
        ({"topic": "a"}, "no column for the instruction and output, nor 'messages' (the row has topic"),
        (
            {"topic": "what", "reply": "because"},
            "(the row has topic, reply; name it: --map instruction=topic,output=reply)",
        ),
        ({"id": "x", "prompt": "a", "best_reply": "b"}, "name it: --map output=best_reply"),
        ({"question": "a", "note": "n", "essay": "longer"}, "name it: --map output=essay"),
        (
            {"prompt": "a", "question": "b", "output": "c"},
            "'prompt' and 'question' could all be the instruction (choose one: --map instruction=prompt)",
        ),
        (
            {"problem": "a", "solution": "b", "answer": "c"},
            "'answer' and 'solution' could all be the output (choose one: --map output=answer)",
        ),
        ({"version": 1, "data": [{"a": 1}]}, "'data' holds rows: write each on a line of its own"),
        ({"instruction": "a", "output": " \n"}, "'output' is empty"),
        ({"instruction": "a", "output": 4}, "'output' must be text, it is 4"),
        ({"instruction": ["a"], "output": "b"}, "'instruction' must be text"),
        ({"instruction": "a", "input": 1, "output": "b"}, "'input' must be text, it is 1"),
        (
            {"instruction": "a", "constraints": 7, "output": "b"},
            "'constraints' must be a list of texts, it is 7",
        ),
        ({"instruction": "a", "history": "x", "output": "b"}, "'history' must be a list of question and answer"),
        ({"instruction": "a", "history": [["q"]], "output": "b"}, "history[0] must be a question and an answer"),
        ({"question": "a", "answers": "b"}, "'answers' must be a list of texts, it is 'b'"),
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
    with pytest.raises(BadRowError, match="no column 'reasoning' or 'think' or 'thinking' or 'reasoning_content'"):
        r1_record({"question": "Why?", "answer": "B"}, CONTEXT)


@pytest.mark.parametrize(
    ("think", "instruction", "output"),
    [
        ("input", "Why?\n\n<think>\nhm\n</think>", "So."),
        ("output", "Why?", "<think>\nhm\n</think>\n\nSo."),
        ("drop", "Why?", "So."),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "reasoning": "hm", "answer": "So."},
        {"prompt": "Why?", "response": "<think>\nhm\n</think>\n\nSo."},
        {"prompt": "Why?", "response": "hm</think>So."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>hm</think> So."}]},
        {
            "messages": [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So.", "reasoning_content": "hm"},
            ]
        },
    ],
    ids=["column", "tag", "closing-tag", "chat-tag", "chat-field"],
)
def test_the_thinking_goes_where_it_is_told(row, think, instruction, output):
    record = r1_record(row, CONTEXT, think=think)
    assert (record.instruction, record.output) == (instruction, output)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "response": "<think>hm"}, "<think> without </think>: the trace is cut short"),
        ({"prompt": "a", "response": "<think>hm</think> \n"}, "no answer after </think>"),
        ({"conversations": talk(("human", "a"), ("gpt", "b"))}, "no thinking in the last answer"),
        ({"prompt": "a", "reasoning": " ", "response": "b"}, "'reasoning' is empty"),
    ],
)
def test_a_trace_without_its_parts_is_refused(row, reason):
    with pytest.raises(BadRowError) as caught:
        r1_record(row, CONTEXT)
    assert reason in str(caught.value)


def test_an_ordinary_chat_keeps_the_tags_in_its_text():
    record = chat_record({"conversations": talk(("human", "a"), ("gpt", "<think>b</think>c"))}, CONTEXT)
    assert record.output == "<think>b</think>c"


TOOL_CHAT = {
    "tools": '[{"type": "function", "function": {"name": "area"}}]',
    "messages": [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "How large are Peru and Chad?"},
        {
            "role": "assistant",
            "content": [
                {"type": "reasoning", "value": "Two calls."},
                {"type": "tool_call", "value": '{"name": "area", "arguments": {"of": "Peru"}}'},
                {"type": "tool_call", "value": '{"name": "area", "arguments": {"of": "Chad"}}'},
            ],
        },
        {"role": "tool", "content": "1285216"},
        {"role": "tool", "content": "1284000"},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "value": "Done."}, {"type": "text", "value": "Large."}],
        },
    ],
}


def test_tools_are_written_as_text_and_only_the_last_thinking_is_kept():
    record = chat_record(TOOL_CHAT, CONTEXT)
    system, question, call = (message["content"] for message in record.history)
    assert system.startswith("Be exact.\n\n# Tools")
    assert '<tools>\n{"type": "function", "function": {"name": "area"}}\n</tools>' in system
    assert question == "How large are Peru and Chad?"
    assert call.count("<tool_call>") == 2
    assert "Two calls." not in call
    assert record.instruction == (
        "<tool_response>\n1285216\n</tool_response>\n<tool_response>\n1284000\n</tool_response>"
        "\n\n<think>\nDone.\n</think>"
    )
    assert (record.output, record.history_loss) == ("Large.", True)
    assert record.notes == (TOOLS_AS_TEXT, EARLIER_THINKING_CUT)
    kept = chat_record(TOOL_CHAT, CONTEXT, think="output")
    assert kept.history[2]["content"].startswith("<think>\nTwo calls.\n</think>\n\n<tool_call>")
    assert kept.output == "<think>\nDone.\n</think>\n\nLarge."


def test_tool_calls_of_openai_and_sharegpt_are_the_same_text():
    call = {"function": {"name": "area", "arguments": '{"of": "Peru"}'}}
    openai = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "b"},
    ]
    sharegpt = talk(
        ("human", "a"),
        ("function_call", '{"name": "area", "arguments": {"of": "Peru"}}'),
        ("observation", "1"),
        ("gpt", "b"),
    )
    first, second = (chat_record(row, CONTEXT) for row in ({"messages": openai}, {"conversations": sharegpt}))
    assert first == second
    assert first.history[1]["content"] == '<tool_call>\n{"name": "area", "arguments": {"of": "Peru"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**TOOL_CHAT, "tools": "{"}, "'tools' is not JSON"),
        ({**TOOL_CHAT, "tools": 3}, "'tools' must be a list, it is 3"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [1]}]},
            "a tool call needs a name, it is 1",
        ),
    ],
)
def test_broken_tools_are_refused(row, reason):
    with pytest.raises(BadRowError) as caught:
        chat_record(row, CONTEXT)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("row", "instruction", "output"),
    [
        ({"prompt": "a", "completion": "b"}, "a", "b"),
        ({"question": "a", "answer": "b", "context": "c"}, "a\n\nc", "b"),
        ({"query": "a", "response": "b"}, "a", "b"),
        ({"text": "a", "code": "b", "task_id": 4}, "a", "b"),
        ({"prompt": "a", "canonical_solution": "b"}, "a", "b"),
        ({"input": "a", "output": "b"}, "a", "b"),
        ({"inputs": "a", "targets": "b"}, "a", "b"),
        ({"instruction": "a", "output": "b", "prompt": "x", "response": "y", "text": "z"}, "a", "b"),
        ({"question": "a", "context": "c", "answers": {"text": ["b", "x"], "answer_start": [1, 2]}}, "a\n\nc", "b"),
        ({"question": "a", "answers": [{"text": "b"}]}, "a", "b"),
    ],
)
def test_columns_go_by_their_usual_names(row, instruction, output):
    record = columns_record(row, CONTEXT)
    assert (record.instruction, record.output) == (instruction, output)


def test_a_question_that_has_no_answer_is_left_out():
    with pytest.raises(SkippedRowError, match="question without an answer"):
        columns_record({"question": "a", "context": "c", "answers": {"text": []}}, CONTEXT)


def test_system_and_history_columns_come_first():
    row = {"system": "S", "history": [["a", "b"]], "instruction": "c", "output": "d"}
    record = columns_record(row, CONTEXT)
    assert [message["role"] for message in record.history] == ["system", "user", "assistant"]
    assert record.history_loss


def test_files_of_crab_rows_and_of_traces_are_known_by_their_columns():
    crab = columns_record(crab_row("1_forward", "Name a river.\n\n* Be brief.", "Rhine"), CONTEXT)
    assert crab.constraints == ("Be brief.",)
    trace = columns_record({"question": "Why?", "reasoning": "hm", "answer": "So."}, CONTEXT, think="drop")
    assert (trace.instruction, trace.rule) == ("Why?", "think dropped")


def with_listed(instruction, constraints, **columns):
    return columns_record({"prompt": instruction, "constraints": constraints, "response": "o", **columns}, CONTEXT)


def test_constraints_in_the_text_stay_there_and_leave_the_bare_instruction():
    text = "Name a river. end it with P.S.. no commas please. "
    record = with_listed(text, ["no commas please", "end it with P.S."])
    assert (record.instruction, record.full_text) == ("Name a river.", text)
    assert record.constraints == ("no commas please", "end it with P.S.")
    assert record.rule == LISTED


def test_constraints_beside_the_text_are_joined_to_it():
    record = with_listed("Name a river.", {"Tone": "Be formal.", "Focus": ["Europe", "Asia"], "None": None})
    assert (record.constraints, record.full_text) == (("Be formal.", "Focus: Europe, Asia"), None)
    assert record.template.render("a", record.constraints) == "a\n\n- Be formal.\n- Focus: Europe, Asia"
    turns = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "Rhine"}]
    chat = columns_record({"messages": turns, "constraints": ["Be formal."]}, CONTEXT)
    assert (chat.constraints, chat.one_input) == (("Be formal.",), None)


@pytest.mark.parametrize(
    ("text", "constraints", "reason"),
    [
        ("Name a river.", ["length_constraints:number_words", "format:no commas"], ONLY_IDS),
        ("Name a river. Be very brief.", ["Be very brief.", "Use no commas."], PARTLY_FOUND),
        ("Be very brief. ", ["Be very brief."], NOTHING_ELSE),
    ],
)
def test_lists_that_do_not_tell_constraints_apart_leave_one_input(text, constraints, reason):
    record = with_listed(text, constraints)
    assert (record.instruction, record.constraints, record.one_input) == (text, (), reason)


def test_csv_cells_hold_a_list_as_json_or_as_lines():
    for cell in ('["Be brief.", "No commas."]', "- Be brief.\n- No commas.", "1. Be brief.\n\n2. No commas."):
        assert with_listed("Name a river.", cell).constraints == ("Be brief.", "No commas.")
    assert with_listed("Name a river.", "[sic] stays a text").constraints == ("[sic] stays a text",)


def mapped(row, **columns):
    return find_source("rows.jsonl", columns=columns).to_record(row, CONTEXT)


def test_columns_are_mapped_and_others_do_not_compete():
    row = {"prompt": "a", "question": "b", "meta": {"best": ["c"]}, "messages": [], "key": 7}
    record = mapped(row, instruction="question", output="meta.best.0", id="key")
    assert (record.instruction, record.output, record.id) == ("b", "c", "7")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert mapped({"instruction": "x", "output": "y", "talk": turns}, messages="talk").instruction == "a"


def test_a_mapped_column_that_is_not_there_is_named():
    with pytest.raises(BadRowError, match=r"no column 'best' for --map output=best \(the row has a, b\)"):
        mapped({"a": "x", "b": "y"}, instruction="a", output="best")


def test_options_that_do_not_belong_are_refused_at_once():
    cases = [
        ({"columns": {"instuction": "a"}}, "--map instuction=a: did you mean 'instruction'?"),
        ({"columns": {"output": " "}}, "--map output=: name a column"),
        ({"think": "maybe"}, "--think maybe: allowed are input, output, drop"),
        ({"min_confidence": 1.5}, "--min-confidence 1.5: must be from 0 to 1"),
        ({"keep_reverse": True}, "--keep-reverse belongs to the source crab"),
        ({"revision": "main"}, "--revision belongs to a data set on the hub; rows.jsonl is a file"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError) as caught:
            find_source("rows.jsonl", **options)
        assert message in str(caught.value)


def test_sources_and_contexts_go_to_worker_processes():
    source = find_source("owner/name:main", columns={"output": "reply"}, think="drop", revision="v1")
    assert (source.name, source.hub_id, source.revision) == ("name", "owner/name:main", "v1")
    for original in (source, find_source("crab", keep_reverse=True, min_confidence=0.9), find_source("starter")):
        copy, context = pickle.loads(pickle.dumps((original, RowContext("s", "i", template_chooser("mixed", 3)))))
        assert copy.name == original.name
        assert context.template_for("x") == template_chooser("mixed", 3)("x")
    row = {"instruction": "a", "reply": "b"}
    assert pickle.loads(pickle.dumps(source)).to_record(row, CONTEXT) == source.to_record(row, CONTEXT)


def test_confidence_below_the_threshold_falls_back_to_one_input():
    row = crab_row("1_forward", "Name a river.\nBe brief. Use no commas.", "Rhine")
    assert crab_record(row, CONTEXT).constraints == ("Be brief.", "Use no commas.")
    sure = crab_record(row, CONTEXT, min_confidence=0.9)
    assert (sure.constraints, sure.one_input) == ((), "split less certain than 0.9")
    assert (sure.instruction, sure.confidence) == ("Name a river.\nBe brief. Use no commas.", 0.6)


def test_reverse_rows_are_kept_whole_when_asked_for():
    record = crab_record(crab_row("1_reverse", "q\n\n* a", "b"), CONTEXT, keep_reverse=True)
    assert (record.instruction, record.constraints, record.one_input) == ("q\n\n* a", (), REVERSE)
    with pytest.raises(SkippedRowError, match="reverse row"):
        crab_record(crab_row("1_fewshot", "q", "a"), CONTEXT)


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


@pytest.mark.parametrize(
    ("path", "columns", "rows", "kinds"),
    [
        ("math/gsm8k_test.jsonl.gz", {}, 1319, {"columns"}),
        ("code/mbpp.jsonl.gz", {}, 974, {"columns"}),
        ("code/mbpp_sanitized.json.gz", {}, 427, {"columns"}),
        ("code/HumanEval.jsonl.gz", {}, 164, {"columns"}),
        ("chat/alpaca_en_demo.json.gz", {}, 999, {"columns"}),
        ("chat/sharegpt_50.json.gz", {}, 50, {"chat"}),
        ("qa/drop_small.jsonl", {}, 50, {"columns"}),
        ("ifeval/input_response_data_gpt4_20231107_145030.jsonl", {}, 541, {"columns"}),
        ("reasoning/r1_pcmb_traces_filtered.jsonl.gz", {}, 200, {"think in the input"}),
        ("reasoning/reason_tool_use_demo_50.jsonl", {}, 50, {"think in the input"}),
        ("conifer/06_answer.json", {"instruction": "question"}, 6, {"columns"}),
        ("conifer/06_multi_turn.json", {}, 3, {"chat"}),
        ("follow_complex_instruction/data.jsonl.gz", {"output": "prompt"}, 1500, {LISTED}),
    ],
)
def test_real_files_are_read_whole(shared_data, path, columns, rows, kinds):
    source = find_source(str(shared_data / path), columns=columns)
    records = [source.to_record(row.values, CONTEXT) for row in read_rows(shared_data / path)]
    assert len(records) == rows
    assert Counter(record.rule for record in records).keys() == kinds


def test_real_lists_of_constraints_in_the_prompt_leave_none_of_them_in_the_bare_instruction(shared_data):
    path = shared_data / "follow_complex_instruction" / "data.jsonl.gz"
    source = find_source(str(path), columns={"output": "prompt"})
    for row, seed in zip(read_rows(path), read_rows(path.with_name("seed_data.jsonl.gz")), strict=True):
        record = source.to_record(row.values, CONTEXT)
        assert record.full_text == row.values["prompt"]
        assert record.constraints == tuple(text.strip() for text in row.values["constraints"])
        assert not any(text in record.instruction for text in record.constraints)
        instruction = seed.values["instruction"].strip()
        if row.values["prompt"].strip().startswith(instruction):  # not so for 85 of the 1500
            assert record.instruction.startswith(instruction)
