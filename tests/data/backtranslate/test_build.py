"""Back-translation on real pairs: every constraint holds, is stated in full, and says something."""

import gzip
import json
import pickle
import re
from collections import Counter
from itertools import combinations

import pytest

from misotune.data.account import Account
from misotune.data.backtranslate import build
from misotune.data.backtranslate.build import LAST_ANSWER_ONLY, NUM_FIT, RULE, TOO_FEW, Backtranslation
from misotune.data.backtranslate.constraint_types import constraint_types
from misotune.data.backtranslate.word_lists import NUMBER_NAMES
from misotune.data.records import Record, to_samples
from misotune.data.sources.columns import columns_record
from misotune.data.sources.fields import RowContext, template_chooser


def record(instruction, output, identity="a", **more):
    return Record(identity, "src", "dom", (), instruction, (), output, **more)


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file) if path.name.endswith(".json.gz") else [json.loads(line) for line in file]


def records_of(rows):
    context = template_chooser("bullets", 0)
    return [columns_record(row, RowContext("src", f"src-{i}", context)) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def pairs(shared_data):
    """200 pairs of Alpaca, 100 of GSM8K, 60 of MBPP, 50 ShareGPT chats: prose, sums, code, several languages."""
    math = [
        {"instruction": row["question"], "output": row["answer"]}
        for row in read(shared_data / "math/gsm8k_train.jsonl.gz")
    ]
    code = [{"instruction": row["text"], "output": row["code"]} for row in read(shared_data / "code/mbpp.jsonl.gz")]
    chats = [row for row in read(shared_data / "chat/sharegpt_sample.jsonl.gz") if len(row["conversations"]) % 2 == 0]
    return records_of([*read(shared_data / "chat/alpaca_en_demo.json.gz")[:200], *math[:100], *code[:60], *chats[:50]])


@pytest.fixture(scope="module")
def made(pairs, shared_data):
    import nltk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(shared_data / "nltk_data")])
        return list(Backtranslation(seed=7)(pairs, Account()))


def constraints_of(records, *types):
    return [
        (row, text, kwargs)
        for row in records
        for text, (name, kwargs) in zip(row.constraints, row.checks, strict=True)
        if name in types
    ]


def test_most_pairs_get_two_to_five_constraints_and_nothing_else_changes(pairs, made):
    assert [row.id for row in made] == [row.id for row in pairs]
    numbers = Counter(len(row.constraints) for row in made)
    assert numbers.keys() <= {0, 2, 3, 4, 5}
    assert numbers[0] < 0.2 * len(made)
    for before, after in zip(pairs, made, strict=True):
        assert (after.instruction, after.output, after.history) == (before.instruction, before.output, before.history)
        assert (after.rule, after.one_input) == ((RULE, None) if after.constraints else (before.rule, TOO_FEW))


@pytest.mark.usefixtures("punkt")
def test_ifevals_own_evaluation_finds_its_types_met(made):
    from lm_eval.tasks.ifeval import instructions_registry, utils

    num_verified = 0
    for row in made:
        checks = [(name, dict(kwargs)) for name, kwargs in row.checks if name in instructions_registry.INSTRUCTION_DICT]
        if checks:
            names, kwargs = zip(*checks, strict=True)
            example = utils.InputExample(0, list(names), row.instruction, list(kwargs))
            verdict = utils.test_instruction_following_strict(example, row.output)
            assert verdict.follow_all_instructions, (row.id, checks, verdict.follow_instruction_list)
            num_verified += len(checks)
    assert num_verified > 300


def test_numbers_words_and_absences_hold_by_plain_string_methods(made):
    """The definitions written a second time, without the code under test."""
    seen = Counter()
    for row in made:
        text, words = row.output, row.output.split()
        body = text.strip()
        for name, kwargs in row.checks:
            value = next(iter(kwargs.values()), None)
            match name:
                case "length_constraints:number_words" if kwargs["relation"] == "at least":
                    holds = len(words) >= kwargs["num_words"] and len(re.findall(r"\w+", text)) >= kwargs["num_words"]
                case "length_constraints:number_words":
                    holds = len(words) < kwargs["num_words"]
                case "length:words_between":
                    holds = kwargs["low"] <= len(words) <= kwargs["high"]
                case "keywords:existence":
                    holds = all(word in text.lower() for word in value)
                case "keywords:forbidden_words":
                    holds = not set(value) & set(re.split(r"[^a-z]+", text.lower()))
                case "punctuation:no_comma":
                    holds = "," not in text
                case "digits:none":
                    holds = not re.search(r"[0-9]", text)
                case "length:single_paragraph":
                    holds = "\n" not in body
                case "length:paragraphs":
                    holds = len([part for part in text.split("\n\n") if part.strip()]) == value
                case "list:numbered":
                    holds = [
                        line.split()[0].rstrip(".)") for line in text.splitlines() if re.match(r"\s*\d+[.)]\s", line)
                    ] == [str(i + 1) for i in range(value)]
                case "start:word":
                    holds = re.match(r"\w+", body).group().lower() == value.lower()
                case "startend:end_checker":
                    holds = body.strip('"').endswith(value.strip('"'))
                case "end:last_line":
                    holds = body.splitlines()[-1].startswith(value)
                case "code:function_name":
                    holds = re.search(rf"(def|function|func|fn)\s+{value}\b", text) is not None
                case "code:max_lines" if "```" not in text:
                    holds = sum(map(bool, map(str.strip, text.splitlines()))) <= value
                case _:
                    continue
            seen[name] += 1
            assert holds, (row.id, name, kwargs)
    assert len(seen) >= 14
    assert seen.total() > 300


def test_the_sentence_states_the_words_and_the_number_that_are_checked(made):
    limits = {"less than": -1, "at least": 0, None: 0}
    for row in made:
        for text, (name, kwargs) in zip(row.constraints, row.checks, strict=True):
            relation = next((v for k, v in kwargs.items() if k.endswith("relation")), None)
            for key, value in kwargs.items():
                if isinstance(value, int):
                    n = value + limits[relation]
                    names = {0: ["without", "at all", "must not"], 1: ["single", "just", "once", "one", " a ", "the"]}
                    names[2] = ["twice"]
                    ways = [str(n), *([NUMBER_NAMES[n]] if n < 13 else []), *names.get(n, [])]
                    ways += ["first", "second", "third", "fourth", "fifth", "sixth"][n - 1 : n] if "nth" in key else []
                    assert any(way in text.lower() for way in ways), (text, name, kwargs)
                elif key not in ("relation", "let_relation", "capital_relation", "prompt_to_repeat", "language"):
                    for word in value if isinstance(value, list) else [value]:
                        assert word.lower() in text.lower(), (text, name, kwargs)


def test_types_are_many_and_none_takes_over(made):
    counts = Counter(name for row in made for name, _ in row.checks)
    assert len(counts) >= 45
    assert counts.most_common(1)[0][1] < 0.12 * counts.total()
    wordings = Counter(text for row in made for text in row.constraints)
    assert len(wordings) > 0.6 * wordings.total()


def test_no_two_constraints_of_a_row_say_the_same(made):
    types = constraint_types()
    for row in made:
        kinds = [types[name] for name, _ in row.checks]
        assert len({kind.name for kind in kinds}) == len(kinds)
        assert not any(set(one.groups) & set(two.groups) for one, two in combinations(kinds, 2)), row.checks
        assert max(Counter(kind.family for kind in kinds).values(), default=0) <= 2


def test_keywords_are_words_of_the_response_and_not_of_the_instruction(made):
    found = constraints_of(made, "keywords:existence")
    assert len(found) > 15
    for row, _, kwargs in found:
        for word in kwargs["keywords"]:
            assert re.search(rf"\b{word}\b", row.output, re.IGNORECASE)
            assert word not in row.instruction.lower()
            assert len(word) >= 4


def test_what_the_instruction_states_already_is_not_said_again(made):
    for row, text, _ in constraints_of(made, "length_constraints:number_words", "length:words_between"):
        assert not re.search(
            r"\b(\d+|[a-z]+)[ -](words?|sentences?)\b|\bbrief|\bshort", row.instruction[:900].lower()
        ), (
            row.instruction,
            text,
        )
    for row, _, _ in constraints_of(made, "list:none"):
        assert not re.search(r"\blist\b|\bsteps\b", row.instruction.lower())


def test_code_gets_constraints_for_code_alone(pairs, made):
    for row in made:
        if row.output.startswith("def "):
            assert all(name.split(":")[0] == "code" or name.startswith("markdown:") for name, _ in row.checks), (
                row.checks
            )


SPANISH = (
    "La lluvia cae sobre los tejados desde el amanecer.\n\n* Los agricultores la esperaban\n* La ciudad la maldice\n"
    "* Mi abuela abre la ventana para oler la tierra mojada"
)


def test_a_response_in_another_language_gets_its_language_and_what_needs_no_english():
    rows = [
        record("Escribe algo sobre el clima de tu pueblo, por favor, y hazlo bien.", SPANISH, f"r{i}")
        for i in range(40)
    ]
    made = [row for row in Backtranslation()(rows, Account()) if row.constraints]
    assert len(made) == len(rows)
    assert not any(constraint_types()[name].scope == "english" for row in made for name, _ in row.checks)
    languages = constraints_of(made, "language:response_language")
    assert languages
    assert all("Spanish" in text and kwargs == {"language": "es"} for _, text, kwargs in languages)


def test_rows_do_not_depend_on_order_or_on_each_other_once_fitted(pairs, punkt):
    translate = Backtranslation(seed=3).fit(pairs)
    forwards = [translate(row) for row in pairs[:80]]
    backwards = [translate(row) for row in reversed(pairs[:80])]
    assert forwards == backwards[::-1]
    assert pickle.loads(pickle.dumps(translate))(pairs[0]) == forwards[0]
    other = Backtranslation(seed=4).fit(pairs)
    assert (
        sum(other(row).constraints != row_made.constraints for row, row_made in zip(pairs[:80], forwards, strict=True))
        > 40
    )


@pytest.mark.slow
def test_worker_processes_change_nothing(pairs, shared_data, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(shared_data / "nltk_data"))
    alone = list(Backtranslation()(pairs[:280], Account()))
    assert list(Backtranslation(workers=2)(pairs[:280], Account())) == alone


def test_the_stream_is_read_only_so_far_ahead(monkeypatch):
    monkeypatch.setattr(build, "NUM_FIT", 5)
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield record("Say it.", "Rain falls.", f"r{number}")
            number += 1

    stream = Backtranslation()(endless(), Account())
    for _ in range(8):
        next(stream)
    assert len(taken) <= 9
    assert NUM_FIT >= 1000


def test_a_chat_trains_on_its_last_answer_alone(pairs, made):
    several = [(old, new) for old, new in zip(pairs, made, strict=True) if old.history_loss and new.constraints]
    assert len(several) > 10
    for old, new in several:
        assert not new.history_loss
        assert new.notes == (*old.notes, LAST_ANSWER_ONLY)
        sample = to_samples(new, "para")[0]
        assert [entry.role for entry in sample.inputs] == ["full", *["constraint"] * len(new.constraints), "base"]
        assert all(list(entry.messages[:-1]) == list(old.history) for entry in sample.inputs)


def test_what_the_system_message_asks_for_is_not_asked_again():
    text = "Rain falls on the old roof, and nobody listens to it. " * 8
    system = {"role": "system", "content": "Answer in short paragraphs without commas or digits."}
    rows = [record("Write about rain.", text, f"r{i}") for i in range(30)]
    told = [Record(row.id, "s", "d", (system,), row.instruction, (), row.output) for row in rows]
    lengths = [
        sum(name.startswith("length") for row in Backtranslation()(each, Account()) for name, _ in row.checks)
        for each in (rows, told)
    ]
    assert lengths[0] > 10
    assert lengths[1] == 0


def test_a_row_with_constraints_of_its_own_stays_as_it_is():
    row = Record("a", "s", "d", (), "Write.", ("Be brief.",), "Rain fell on the roof all day long.")
    assert list(Backtranslation()([row], Account())) == [row]


def test_a_response_that_meets_too_little_keeps_one_input():
    (row,) = Backtranslation()([record("Capital of France?", "Paris")], Account())
    assert (row.constraints, row.one_input) == ((), TOO_FEW)


@pytest.mark.usefixtures("no_punkt")
def test_without_punkt_its_types_are_left_out_with_a_note(pairs):
    step = Backtranslation()
    rows = list(step(pairs[:120], Account()))
    assert not constraints_of(rows, "length_constraints:number_sentences", "change_case:capital_word_frequency")
    assert re.search("number_sentences; run `python -m nltk.downloader punkt_tab`.*NLTK_DATA", step.notes[0])


def test_constraints_in_line_follow_a_finished_sentence_only(made):
    for row in made:
        text = row.template.render(row.instruction, row.constraints)
        if row.constraints and "\n" not in text[len(row.instruction) :]:
            assert row.instruction.rstrip()[-1] in ".?!"
            assert "\n" not in row.instruction.rstrip()


@pytest.mark.parametrize("output", ["", "...", "\n\n", "```", "```\n", "*", "1.", "\u200b", "[", "<<>>", "a" * 50_000])
def test_odd_responses_do_no_harm(output):
    (row,) = Backtranslation()([record("Write something odd.", output)], Account())
    assert row.output == output


def test_a_join_that_is_asked_for_is_kept():
    text = "Rain falls on the old roof, and nobody listens to it. " * 8
    (row,) = Backtranslation(join="bullets")([record("Write about the weather.", text)], Account())
    assert row.template.item == "- {item}"
    assert len(row.constraints) >= 2
