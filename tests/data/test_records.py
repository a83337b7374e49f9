from misotune.data.records import Record, Template, to_samples

HISTORY = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
RECORD = Record(
    id="r",
    source="s",
    domain="d",
    history=HISTORY,
    instruction="Name a river.",
    constraints=("Be brief.", "No commas."),
    output="Rhine",
    template=Template("{instruction}\n\n{constraints}", "{index}. {item}"),
)


def last_texts(samples):
    return [[entry.messages[-1]["content"] for entry in sample.inputs] for sample in samples]


def test_para_has_the_full_input_one_per_constraint_and_the_bare_instruction():
    (sample,) = to_samples(RECORD, "para")
    assert [entry.role for entry in sample.inputs] == ["full", "constraint", "constraint", "base"]
    assert [entry.constraint for entry in sample.inputs] == [None, "Be brief.", "No commas.", None]
    assert last_texts([sample]) == [
        [
            "Name a river.\n\n1. Be brief.\n2. No commas.",
            "Name a river.\n\n1. Be brief.",
            "Name a river.\n\n1. No commas.",
            "Name a river.",
        ]
    ]


def test_history_stands_in_every_input():
    (sample,) = to_samples(RECORD, "para")
    assert all(entry.messages[:-1] == HISTORY for entry in sample.inputs)


def test_flat_makes_each_input_of_para_a_row_of_its_own():
    (para,) = to_samples(RECORD, "para")
    flat = to_samples(RECORD, "flat")
    assert [sample.id for sample in flat] == ["r#0", "r#1", "r#2", "r#3"]
    assert tuple(entry for sample in flat for entry in sample.inputs) == para.inputs
    assert {sample.output for sample in flat} == {"Rhine"}


def test_succ_and_sft_have_the_full_instruction_once():
    for mode, role in (("succ", "chunked"), ("sft", "full")):
        (sample,) = to_samples(RECORD, mode)
        assert [entry.role for entry in sample.inputs] == [role]
        assert last_texts([sample]) == [["Name a river.\n\n1. Be brief.\n2. No commas."]]


def test_a_row_without_constraints_has_one_full_input():
    record = Record("r", "s", "d", (), "Hi", (), "Hello")
    for mode in ("para", "flat", "sft"):
        (sample,) = to_samples(record, mode)
        assert (sample.id, [entry.role for entry in sample.inputs]) == ("r", ["full"])


def test_a_chat_trained_on_every_turn_is_never_cut():
    record = Record("r", "s", "d", HISTORY, "Hi", (), "Hello", history_loss=True)
    (sample,) = to_samples(record, "succ")
    assert [entry.role for entry in sample.inputs] == ["full"]
    assert sample.history_loss
