import gzip
import json

import pytest

from misotune.errors import DataError, RunError
from misotune.evaluation.context.reading import READING_SETS, ReadingScoring, load_reading

RHINE = "The Rhine is 1,230 km long. It ends in the North Sea."


def squad(*qas, context=RHINE):
    return {"version": "v2.0", "data": [{"title": "Rhine", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def qa(key, *answers, question="How long is it?", **fields):
    return {"id": key, "question": question, "answers": [{"text": a, "answer_start": 0} for a in answers], **fields}


def drop(**answer):
    pair = {"query_id": "q1", "question": "When?", "answer": answer}
    return {"history_1": {"passage": RHINE, "qa_pairs": [pair]}}


@pytest.mark.parametrize(
    ("name", "file", "number", "notes"),
    [
        ("squad", "squad_v1_sample.json", 5, ()),
        ("squad_v2", "squad_v2_dev_subset.json.gz", 386, ("320 of 706 questions left out: the text does",)),
        ("squad_v2", "squad_v2_train_subset.json.gz", 293, ("333 of 626 questions left out: the text does",)),
        ("quac", "quac_sample.json", 1, ("the first question of each dialogue", "1 questions stand there twice")),
        ("drop", "drop_sample.json", 19, ()),
        ("drop", "drop_small.jsonl", 50, ()),
        ("squad", "hotpot_small.jsonl", 50, ()),
    ],
)
def test_the_real_files_are_read_whole(shared_data, name, file, number, notes):
    task = load_reading(name, data=shared_data / "qa" / file)
    assert len(task.prompts) == number
    assert len(task.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(task.notes, notes, strict=True))
    assert (task.name, task.source, task.max_new_tokens) == (name, str(shared_data / "qa" / file), 100)
    assert len({prompt.key for prompt in task.prompts}) == number
    scoring = ReadingScoring()
    for number_of_answer in range(max(len(prompt.answers) for prompt in task.prompts)):
        gold = [prompt.answers[min(number_of_answer, len(prompt.answers) - 1)] for prompt in task.prompts]
        summary = scoring.summarize(scoring.score(task.prompts, gold))
        assert summary.figures == {"contains": 1.0, "contains_words": 1.0}
    summary = scoring.summarize(scoring.score(task.prompts, [""] * number))
    assert summary.figures == {"contains": 0.0, "contains_words": 0.0}


@pytest.mark.parametrize(
    ("name", "file"),
    [("squad", "squad_v1_sample.json"), ("squad_v2", "squad_v2_dev_subset.json.gz"), ("quac", "quac_sample.json")],
)
def test_the_answers_of_extractive_sets_stand_in_their_prompts(shared_data, name, file):
    for prompt in load_reading(name, data=shared_data / "qa" / file).prompts:
        text, _, question = prompt.prompt.rpartition("\n")
        assert all(answer in text for answer in prompt.answers), prompt.where
        assert question.startswith("Answer the question ")
        assert question.endswith("?") or name == "squad_v2"


def test_squads_answers_are_those_of_the_file(shared_data):
    path = shared_data / "qa" / "squad_v2_dev_subset.json.gz"
    with gzip.open(path, "rt") as file:
        data = json.load(file)
    expected = {}
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                if not entry["is_impossible"]:
                    prompt = f"{paragraph['context']}\nAnswer the question according to the above passage: "
                    expected[entry["id"]] = (prompt + entry["question"], {a["text"] for a in entry["answers"]})
    found = {p.key: (p.prompt, set(p.answers)) for p in load_reading("squad_v2", data=path).prompts}
    assert found == expected


def test_a_question_becomes_one_user_turn(write_json):
    (prompt,) = load_reading("squad", data=write_json(squad(qa("a", "1,230 km", "1,230 km", "1,230")))).prompts
    content = f"{RHINE}\nAnswer the question according to the above passage: How long is it?"
    assert prompt.messages == ({"role": "user", "content": content},)
    assert prompt.answers == ("1,230 km", "1,230")
    assert prompt.content() == ["a", content, ["1,230 km", "1,230"]]
    assert prompt.where.endswith("data.json data[0].paragraphs[0].qas[0]")


def test_quac_asks_the_first_question_with_title_and_background(write_json):
    first = qa("d_q#0", "CANNOTANSWER", "North Sea")
    dialogue = {"id": "d", "context": f"{RHINE} CANNOTANSWER", "qas": [first, qa("d_q#1", "x")]}
    article = {"title": "Rhine", "background": "A river.", "section_title": "End", "paragraphs": [dialogue]}
    (prompt,) = load_reading("quac", data=write_json({"data": [article]})).prompts
    assert prompt.prompt == (
        f"Title: Rhine\nA river. {RHINE} \nAnswer the question with pieces from the the above passage: How long is it?"
    )
    assert (prompt.key, prompt.answers) == ("d_q#0", ("North Sea",))


def test_quacs_unanswerable_dialogues_are_counted(write_json):
    paragraphs = [
        {"id": str(n), "context": RHINE, "qas": [qa(str(n), *answers)]}
        for n, answers in enumerate((["CANNOTANSWER", "CANNOTANSWER"], ["1,230 km"]))
    ]
    task = load_reading("quac", data=write_json({"data": [{"title": "Rhine", "paragraphs": paragraphs}]}))
    assert [p.key for p in task.prompts] == ["1"]
    assert task.notes[1] == "1 of 2 questions left out: the text does not answer them"


@pytest.mark.parametrize(
    ("answer", "kind", "texts"),
    [
        ({"number": "2", "date": {}, "spans": []}, "number", ("2",)),
        ({"number": 0, "date": {}, "spans": []}, "number", ("0",)),
        ({"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["A. Gold", "Gold"]}, "span", None),
        ({"number": "", "date": {"day": "9", "month": "March", "year": "2021"}}, "date", ("9 March 2021",)),
        ({"number": "", "date": {"day": "", "month": "March", "year": "2021"}, "spans": []}, "date", ("March 2021",)),
    ],
)
def test_drops_answers_are_numbers_dates_and_spans(write_json, answer, kind, texts):
    (prompt,) = load_reading("drop", data=write_json(drop(**answer))).prompts
    assert (prompt.kind, prompt.answers) == (kind, texts or tuple(answer["spans"]))


def test_shares_are_means_by_kind_of_answer(shared_data):
    prompts = load_reading("drop", data=shared_data / "qa" / "drop_sample.json").prompts
    said = ("It was 12 or 13 sixth terminals", "8, Philip Rivers", "3 points", "27 points", "Kansas City")
    responses = [said[n % 5] for n in range(len(prompts))]
    scoring = ReadingScoring()
    samples = scoring.score(prompts, responses)
    summary = scoring.summarize(samples)
    rows = [json.loads(json.dumps(sample.to_row())) for sample in samples]
    for name in ("contains", "contains_words"):
        assert summary.figures[name] == sum(row["scores"][name] for row in rows) / 19
        for kind, group in summary.groups["answer"].items():
            of_kind = [row["scores"][name] for row in rows if row["group"] == kind]
            assert (group["number"], group[name]) == (len(of_kind), sum(of_kind) / len(of_kind))
    assert summary.figures["contains"] > summary.figures["contains_words"] > 0
    assert next(iter(summary.figures)) == "contains"
    assert rows[0]["answers"] == list(prompts[0].answers)


def test_sets_without_kinds_have_no_groups(write_json):
    task = load_reading("squad", data=write_json(squad(qa("a", "1,230 km"))))
    scoring = ReadingScoring()
    samples = scoring.score(task.prompts, ["It is 1230 km long"])
    assert scoring.summarize(samples).groups == {}
    assert "group" not in samples[0].found


def test_a_question_that_is_called_impossible_is_left_out_whatever_answers_it_has(write_json):
    data = squad(qa("a", "North Sea", is_impossible=True), qa("b", "North Sea", is_impossible=False))
    assert [p.key for p in load_reading("squad_v2", data=write_json(data)).prompts] == ["b"]


def test_plain_rows_may_leave_out_the_id(write_json):
    rows = [
        {"context": RHINE, "question": "Where?", "answer": "North Sea"},
        {"id": None, "context": RHINE, "question": "How long?", "answer": 1230},
        {"id": 7, "context": RHINE, "question": "Who?", "answer": ""},
    ]
    path = write_json("".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl")
    task = load_reading("drop", data=path, limit=1)
    assert [(p.key, p.answers) for p in task.all_prompts] == [("line 1", ("North Sea",)), ("line 2", ("1230",))]
    assert [p.key for p in task.prompts] == ["line 1"]
    assert task.notes == ("1 of 3 questions left out: the text does not answer them",)


def test_an_answer_of_which_normalisation_leaves_nothing_does_not_count(write_json):
    data = squad(qa("a", "A", "the", "Vitamin A"), qa("b", "%"), qa("c", "North Sea"))
    task = load_reading("squad", data=write_json(data))
    assert [(p.key, p.answers) for p in task.prompts] == [("a", ("Vitamin A",)), ("c", ("North Sea",))]
    assert task.notes == ("1 of 3 questions left out: their answers are but articles and punctuation",)


@pytest.fixture
def hub(monkeypatch):
    """Puts rows in the place of a hub data set."""
    import datasets
    import datasets.config

    asked = []

    def put(rows, features=None):
        def load(name, configuration=None, *, split, revision=None):
            asked.append((name, split))
            return datasets.Dataset.from_list(rows, features=features)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return put


def test_squad_is_read_from_the_hub(hub):
    row = {"id": "a", "title": "Rhine", "context": RHINE, "question": "How long is it?"}
    answers = {"text": ["1,230 km", "1,230 km"], "answer_start": [13, 13]}
    no_answers = {"text": [], "answer_start": []}
    asked = hub([{**row, "answers": answers}, {**row, "id": "b", "answers": no_answers}])
    for name in ("squad", "squad_v2"):
        task = load_reading(name)
        assert [(p.key, p.answers) for p in task.prompts] == [("a", ("1,230 km",))]
        assert task.notes == ("1 of 2 questions left out: the text does not answer them",)
        assert task.source == READING_SETS[name].hub_id
    assert asked == [("rajpurkar/squad", "validation"), ("rajpurkar/squad_v2", "validation")]


@pytest.mark.parametrize("has_lists", [True, False], ids=["object of lists", "list of objects"])
def test_quac_is_read_from_the_hub(hub, has_lists):
    import datasets

    # The columns of allenai/quac. What `datasets` makes of a sequence of objects depends on how the card says it:
    # a list of objects, or an object of lists.
    texts, starts = datasets.Sequence(datasets.Value("string")), datasets.Sequence(datasets.Value("int32"))
    answers = [
        {"texts": ["North Sea", "in the North Sea"], "answer_starts": [1, 2]},
        {"texts": ["CANNOTANSWER"], "answer_starts": [3]},
    ]
    feature = {"texts": texts, "answer_starts": starts}
    if has_lists:
        answers = {name: [answer[name] for answer in answers] for name in feature}
        feature = {name: datasets.Sequence(inner) for name, inner in feature.items()}
    else:
        feature = datasets.Sequence(feature)
    named = ("dialogue_id", "wikipedia_page_title", "background", "section_title", "context")
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in named},
            "turn_ids": texts,
            "questions": texts,
            "followups": datasets.Sequence(datasets.ClassLabel(names=["y", "n", "m"])),
            "yesnos": datasets.Sequence(datasets.ClassLabel(names=["y", "n", "x"])),
            "answers": feature,
            "orig_answers": {"texts": texts, "answer_starts": starts},
        }
    )
    row = {
        "dialogue_id": "d", "wikipedia_page_title": "Rhine", "background": "A river.", "section_title": "End",
        "context": f"{RHINE} CANNOTANSWER", "turn_ids": ["d_q#0", "d_q#1"], "questions": ["Where to?", "Why?"],
        "followups": [0, 1], "yesnos": [2, 2], "answers": answers,
        "orig_answers": {"texts": ["North Sea", "CANNOTANSWER"], "answer_starts": [1, 3]},
    }  # fmt: skip
    hub([row], features)
    (prompt,) = load_reading("quac").prompts
    assert (prompt.key, prompt.answers) == ("d_q#0", ("North Sea", "in the North Sea"))
    assert prompt.prompt.startswith("Title: Rhine\nA river. The Rhine")
    assert prompt.prompt.endswith("the the above passage: Where to?")
    assert prompt.where == "allenai/quac: row 1"


def test_drop_is_read_from_the_hub(hub):
    row = {
        "section_id": "history_1", "query_id": "q1", "passage": RHINE, "question": "How long?",
        "answers_spans": {"spans": ["1230", "1,230 km"], "types": ["number", "span"]},
    }  # fmt: skip
    hub([row])
    (prompt,) = load_reading("drop").prompts
    assert (prompt.key, prompt.kind, prompt.answers) == ("q1", "number", ("1230", "1,230 km"))


def test_the_hubs_rows_are_read_from_a_file_too(write_json):
    row = {"id": "a", "context": RHINE, "question": "How long?", "answers": {"text": ["1,230 km"]}}
    assert load_reading("squad", data=write_json(json.dumps(row), "rows.jsonl")).prompts[0].answers == ("1,230 km",)
    rows = [{**row, "answers": [{"text": "1,230 km"}]}, {**row, "id": "b", "answers": []}]
    task = load_reading("squad", data=write_json("".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl"))
    assert [(p.key, p.answers) for p in task.prompts] == [("a", ("1,230 km",))]
    row = {"query_id": "q", "passage": RHINE, "question": "How long?", "answer": {"number": "5", "spans": []}}
    assert load_reading("drop", data=write_json(json.dumps(row), "rows.jsonl")).prompts[0].answers == ("5",)


def test_a_hub_out_of_reach_names_the_way_with_a_file(monkeypatch):
    import datasets
    import datasets.config

    def fail(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(RunError, match=r"ucinlp/drop: .*no route to the hub.*misotune eval drop --data FILE"):
        load_reading("drop")


PARAGRAPH = r"data\[0\]\.paragraphs\[0\]"
WRONG_FILES = {
    "cut": ("squad", '{"data": [', r"data.json line 1: not JSON: Expecting value at column 11"),
    "list": ("squad", [], r"must hold one JSON object"),
    "no data": ("squad", {}, r"data.json: needs 'data', a list of objects"),
    "drop as squad": ("squad", drop(number="2"), r"needs 'data', a list of objects; is this file of another task"),
    "squad as drop": ("drop", squad(qa("a", "x")), r"passage 'version': drop is \{passage id: \{passage, qa_pairs"),
    "squad as quac": ("quac", squad(qa("a", "x")), rf"{PARAGRAPH}: 'id' must be an id"),
    "quac as squad": ("squad", squad(qa("a", "x"), context="A. CANNOTANSWER"), r"a dialogue of QuAC"),
    "no paragraphs": ("squad", {"data": [{"title": "x"}]}, r"data\[0\]: needs 'paragraphs'"),
    "no context": ("squad", squad(qa("a", "x"), context=" "), rf"{PARAGRAPH}: 'context' must be a text"),
    "no question": ("squad", squad(qa("a", "x", question=3)), rf"{PARAGRAPH}.qas\[0\]: 'question' must be a text"),
    "no answers": ("squad", squad({"id": "a", "question": "Q?"}), rf"{PARAGRAPH}.qas\[0\]: needs 'answers'"),
    "empty answer": ("squad", squad(qa("a", "")), rf"{PARAGRAPH}.qas\[0\].answers\[0\]: 'text' must be a text"),
    "empty id": ("squad", squad(qa("", "x")), rf"{PARAGRAPH}.qas\[0\]: 'id' must be an id that is not empty, got ''"),
    "id twice": (
        "squad",
        squad(qa("a", "x"), qa("a", "y")),
        rf"{PARAGRAPH}.qas\[1\]: another question has the id 'a', at .*data.json {PARAGRAPH}.qas\[0\]",
    ),
    "none answered": ("squad", squad(qa("a")), r"data.json: none of its 1 questions has an answer; squad needs some"),
    "no questions": ("squad", squad(), r"none of its 0 questions has an answer"),
    "no dialogue": ("quac", {"data": [{"title": "x", "paragraphs": [{"id": "d", "qas": []}]}]}, r"needs 'answers'"),
    "no passage": ("drop", {"p1": {"qa_pairs": []}}, r"passage 'p1': drop is"),
    "no pairs": ("drop", {"p1": {"passage": "x"}}, r"passage 'p1': needs 'qa_pairs'"),
    "no drop answer": (
        "drop",
        {"p1": {"passage": "x", "qa_pairs": [{"query_id": "a", "question": "b"}]}},
        r"passage 'p1' qa_pairs\[0\]: needs 'answer', an object",
    ),
    "wrong spans": ("drop", drop(number="", spans=[3]), r"'spans' must be a list of texts, got \[3\]"),
}


@pytest.mark.parametrize(("name", "content", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_named_with_the_place(write_json, name, content, message):
    with pytest.raises(DataError, match=message):
        load_reading(name, data=write_json(content))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("squad", {"id": "", "context": "x", "question": "y", "answer": "z"}, r"line 1: 'id' must be an id"),
        ("squad", {"id": "a", "question": "y", "answer": "z"}, r"line 1: 'context' must be a text"),
        (
            "squad",
            {"id": "a", "context": "x", "question": "y"},
            r"line 1: needs 'answers', an object; or give JSON lines",
        ),
        ("squad", {"id": "a", "answers": {"text": "z"}}, r"line 1: 'text' must be a list of texts"),
        (
            "quac",
            {"questions": [], "turn_ids": [], "answers": {}},
            r"line 1: 'questions', 'turn_ids' and 'answers.texts'",
        ),
        ("quac", {"questions": "Q?"}, r"line 1: 'questions' must be a list of texts"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(write_json, name, row, message):
    with pytest.raises(DataError, match=message):
        load_reading(name, data=write_json(json.dumps(row), "rows.jsonl"))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.json: cannot be read: No such file"):
        load_reading("squad", data=tmp_path / "none.json")
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a.parquet: drop is read from .json or .jsonl"):
        load_reading("drop", data=tmp_path / "a.parquet")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"data": []}')[:-12] + b"broken")
    with pytest.raises(DataError, match=r"a.json.gz: cannot be read"):
        load_reading("squad", data=tmp_path / "a.json.gz")
    (tmp_path / "a.json").write_bytes(b'{"caf\xe9": 1}')
    with pytest.raises(DataError, match=r"a.json: not UTF-8 text: .* at byte 5"):
        load_reading("squad", data=tmp_path / "a.json")
