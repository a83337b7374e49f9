"""ComplexBench from the data file to the figures, against a server that answers as a judge, or badly."""

# ruff: noqa: RUF001 -- the marks of Chinese are meant

import itertools
import json
import re

import pytest
from tests.chat_server import ChatServer, Fault, question_of

from misotune.chat.cache import AnswerCache
from misotune.chat.messages import ChatAnswer, ChatRequest
from misotune.chat.server import Server
from misotune.errors import RunError, UsageError
from misotune.evaluation.complexbench.judge import Judge, JudgeOptions
from misotune.evaluation.complexbench.scoring import load_complexbench
from misotune.evaluation.evaluate import evaluate_responses

pytest.importorskip("openai")


def judge_at(server, tmp_path, **options) -> JudgeOptions:
    return JudgeOptions(Server(server.url, "small"), tmp_path / "answers.sqlite", **{"retries": 0, **options})


def asked(request):
    """The kind of the prompt, the instruction, the response and the question in it."""
    kind, rest = question_of(request).strip().split("\n", maxsplit=1)
    return kind, *(part.strip() for part in rest.split("---"))


def say(verdict: bool) -> str:
    return f"分析：是否满足要求？\n答案：{'是' if verdict else '否'}"


def name(*parts: str) -> str:
    return f"如上。\n\n【模型回复中评分问题的评测对象】\n评分对象：{'||'.join(parts)}"


def judge_of_899(request) -> str:
    """Cuts the article and the explanation out of GPT-4's response; says no to the first question alone."""
    kind, _, response, question = asked(request)
    if kind == "PART":
        start = "尊敬的" if "文章" in question or "article" in question else "国家B是"
        return name(response[response.index(start) :].split("\n\n案例2")[0])
    return say("国家A有特别提款权？" not in question and "Country A possesses" not in question)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_published_example_with_the_published_response(language, write_data, example, responses, tmp_path):
    suffix = {"zh": "", "en": "_en"}[language]
    with ChatServer(judge_of_899) as server:
        task = load_complexbench(write_data([example]), judge=judge_at(server, tmp_path), language=language)
        (sample,) = task.scoring.score(task.prompts, [responses["gpt4_1106"]])
    assert sample.key == 899
    assert sample.prompt == example["instruction" + suffix]
    questions = sample.found["questions"]
    assert [q["question"] for q in questions] == [q["question" + suffix] for q in example["scoring_questions"]]
    assert [q["origin"] for q in questions] == ["judge"] * 4 + ["rule"] + ["judge"] * 3 + ["rule"]
    # The article has 468 characters, and at least 300 are asked for; the explanation has 126, at most 100.
    assert [q["verdict"] for q in questions] == [False, True, True, True, True, True, True, True, False]
    assert [q["counts"] for q in questions] == [False, True, False, False, False, False, True, True, False]
    assert sample.found["scores"] == {"overall_drfr": [0, 1, 0, 0, 0, 0, 1, 1, 0]}
    assert sample.found["types"][3:6] == ["Factuality", "Length", "Bullets Format"]
    summary = task.scoring.summarize([sample])
    assert next(iter(summary.figures.items())) == ("overall_drfr", 3 / 9)
    assert summary.groups["composition type"] == {"Selection": {"number": 2, "drfr": 0.5}}
    assert summary.groups["constraint type"]["Structure"] == {"number": 3, "drfr": 0.0}
    assert summary.counts == {"questions": 9, "questions_by_rule": 2, "questions_unanswered": 0}
    kinds = [asked(request)[0] for request in server.requests]
    assert sorted(kinds) == ["PART"] * 2 + ["VERDICT"] * 7
    assert {asked(request)[1] for request in server.requests} == {example["instruction" + suffix].strip()}
    # As published: one user turn, and the temperature alone.
    assert all(set(request) == {"messages", "model", "temperature"} for request in server.requests)
    assert all(request["temperature"] == 0 for request in server.requests)


def test_the_result_folder_says_who_judged_and_how(repository, write_data, example, responses, tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text(json.dumps({"key": 899, "response": responses["qwen1.5_7b"]}, ensure_ascii=False))
    write_data([example])
    with ChatServer(lambda request: name("None") if asked(request)[0] == "PART" else say(True)) as server:
        task = load_complexbench(repository, judge=judge_at(server, tmp_path))
        evaluate_responses(path, task, out=tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["figures"]["overall_drfr"] == 7 / 9
    assert any(note.startswith("judged by small;") for note in scores["notes"])
    settings = task.scoring.settings
    assert settings["judge"]["model"] == "small"
    assert settings["judge"]["prompts"] == str(repository / "evaluation" / "prompts")
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in settings["judge"]["prompts_sha256"].values())
    (row,) = map(json.loads, (tmp_path / "out" / "samples.jsonl").read_text().splitlines())
    assert row["questions"][4]["answer"] == name("None")


def test_rules_on_several_parts_ask_for_several_parts(write_data, make_row, tmp_path):
    row = make_row(num_questions=1)
    row["scoring_questions"][0]["rule"] = "model_length_each:[1,2]"
    with ChatServer(lambda request: name(*asked(request)[2].split("、"))) as server:
        task = load_complexbench(write_data([row]), judge=judge_at(server, tmp_path))
        for response, counts in {"甲、乙乙": 1.0, "甲、乙乙乙": 0.0}.items():
            (sample,) = task.scoring.score(task.prompts, [response])
            assert sample.found["scores"] == {"overall_drfr": [counts]}
    assert asked(server.requests[0])[0] == "PARTS {}"


def test_a_killed_judging_goes_on_where_it_stopped(write_data, make_row, tmp_path):
    num_answers = itertools.count()

    def dies_after_20(request) -> str:
        if next(num_answers) >= 20:
            raise Fault(401, '{"error": {"message": "gone"}}')
        return say(True)

    path = write_data([make_row(n) for n in range(30)])
    with ChatServer(dies_after_20) as server:
        task = load_complexbench(path, judge=judge_at(server, tmp_path))
        with pytest.raises(RunError):
            task.scoring.score(task.prompts, ["回"] * 30)
    seen = []
    with ChatServer(lambda request: say(True)) as server:
        options = judge_at(server, tmp_path, on_progress=seen.append)
        task = load_complexbench(path, judge=options)
        samples = task.scoring.score(task.prompts, ["回"] * 30)
    assert task.scoring.summarize(samples).figures["overall_drfr"] == 1.0
    assert len(server.requests) == 60 - 20
    assert (seen[-1].num_questions, seen[-1].num_done, seen[-1].num_cached, seen[-1].num_failed) == (60, 60, 20, 0)
    assert [progress.num_done for progress in seen] == list(range(1, 61))


def test_an_empty_answer_is_asked_for_again(write_data, make_row, tmp_path):
    seen = set()

    def empty_at_first(request) -> str:
        question = question_of(request)
        is_first = question not in seen
        seen.add(question)
        return "" if is_first and "问题0.1" in question else say(True)

    progress = []
    with ChatServer(empty_at_first) as server:
        options = judge_at(server, tmp_path, on_progress=progress.append)
        task = load_complexbench(write_data([make_row()]), judge=options)
        (sample,) = task.scoring.score(task.prompts, ["回"])
    assert sample.found["scores"] == {"overall_drfr": [1.0, 1.0]}
    assert max(found.num_failed for found in progress) == 1
    assert progress[-1].num_failed == 0


def nonsense(num: int, answer: str = "As an AI model I cannot say."):
    """A judge that answers the first questions of the data with nonsense, and the others with yes."""
    return lambda request: answer if asked(request)[3] in {f"问题{n}.0" for n in range(num)} else say(True)


def test_one_unclear_answer_in_a_hundred_is_noted(write_data, make_row, tmp_path):
    with ChatServer(nonsense(2)) as server:
        task = load_complexbench(write_data([make_row(n, 10) for n in range(20)]), judge=judge_at(server, tmp_path))
        summary = task.scoring.summarize(task.scoring.score(task.prompts, ["回"] * 20))
    assert summary.figures["overall_drfr"] == 198 / 200
    assert summary.counts["questions_unanswered"] == 2
    assert summary.notes[0].startswith("2 of 200 questions have no clear answer of the judge (2: an answer that is not")


@pytest.mark.parametrize("answer", ["As an AI model I cannot say.", ""], ids=["nonsense", "empty"])
def test_more_than_that_is_refused_and_the_answers_are_kept(answer, write_data, make_row, tmp_path):
    with ChatServer(nonsense(3, answer)) as server:
        task = load_complexbench(write_data([make_row(n, 10) for n in range(20)]), judge=judge_at(server, tmp_path))
        with pytest.raises(
            RunError, match="gave no clear answer to 3 of 200 questions, more than 1%: no score"
        ) as error:
            task.scoring.score(task.prompts, ["回"] * 20)
    assert "answers.sqlite" in str(error.value)
    assert ("such as 'As an AI model" in str(error.value)) == bool(answer)
    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        assert cache.num_answers == (200 if answer else 197)


def test_what_a_server_refuses_for_its_content_does_not_stop_the_others(tmp_path):
    """Twenty-five such questions are left of 3,000 when the same command runs again: no sign of a dead server."""

    def refuse(request) -> str:
        raise Fault(400, '{"error": {"message": "inappropriate content"}}')

    texts = [lambda n=n: f"question {n}" for n in range(3000)]
    with ChatServer(refuse) as server:
        judge = Judge(judge_at(server, tmp_path))
        with AnswerCache(tmp_path / "answers.sqlite") as cache:
            for text in texts[25:]:
                cache.put(_key(text()), ChatAnswer("答案：是"))
        answers = judge.ask(texts)
    assert [hasattr(answer, "reason") for answer in answers] == [True] * 25 + [False] * 2975


def _key(text):
    return ChatRequest(({"role": "user", "content": text},), {"temperature": 0}).key("small")


def test_a_question_without_an_answer_is_a_no_and_a_rule_then_sees_no_part(write_data, make_row, tmp_path):
    rows = [make_row(n, 10) for n in range(30)]
    rows[0]["scoring_questions"][0]["rule"] = "forbidden_word:[回]"
    with ChatServer(nonsense(2, "")) as server:
        task = load_complexbench(write_data(rows), judge=judge_at(server, tmp_path))
        first, second, *_ = task.scoring.score(task.prompts, ["回"] * 30)
    assert first.found["questions"][0]["verdict"] is True
    assert second.found["questions"][0]["verdict"] is False
    assert [sample.found["questions"][0]["trouble"] for sample in (first, second)] == [
        "the server's answer is empty"
    ] * 2


def test_another_judge_or_other_options_are_asked_anew(write_data, make_row, tmp_path):
    path = write_data([make_row()])
    with ChatServer(lambda request: say(True), models=("small", "big")) as server:
        for model, options in [("small", {"temperature": 0}), ("big", {"temperature": 0}), ("small", {})]:
            judge = JudgeOptions(Server(server.url, model), tmp_path / "answers.sqlite", options=options)
            task = load_complexbench(path, judge=judge)
            task.scoring.score(task.prompts, ["回"])
    assert len(server.requests) == 6


def test_notes_of_a_limit_that_cuts_groups_and_of_english_rules(write_data, make_row, tmp_path):
    path = write_data([make_row(0, group="a"), make_row(1, group="b"), make_row(2, group="b"), make_row(3)])
    judge = JudgeOptions(Server("http://127.0.0.1:9", "small"), tmp_path / "answers.sqlite")
    task = load_complexbench(path, judge=judge, limit=2)
    assert [prompt.key for prompt in task.prompts] == [0, 1]
    assert len(task.all_prompts) == 4
    assert task.notes[1:] == ("the limit cuts 1 groups of instructions: the coherent tests are on parts of them",)
    assert "English, as published" in load_complexbench(path, judge=judge, language="en").notes[1]
    assert len(load_complexbench(path, judge=judge, limit=1).notes) == 1


def test_wrong_use(write_data, make_row, tmp_path):
    path = write_data([make_row()])
    with pytest.raises(UsageError, match="'de': ComplexBench has zh and en"):
        load_complexbench(path, judge=JudgeOptions(Server("http://x", "m"), tmp_path / "a"), language="de")
    assert "secret" not in repr(JudgeOptions(Server("http://x", "m", api_key="secret"), tmp_path / "a"))
