"""IFEval-Flatten is rebuilt out of the user's copy of IFEval, to the letter."""

import json
from collections import Counter
from importlib.resources import files

import pytest

from misotune.errors import DataError
from misotune.evaluation.constrained import ConstrainedPrompt
from misotune.evaluation.flatten import apply_edits, flatten, sha256
from misotune.evaluation.tasks import TaskOptions, load_task


def entries():
    text = (files("misotune.evaluation") / "ifeval_flatten.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_there_are_834_prompts_of_541_and_little_text_of_ours():
    found = entries()
    constraints = [edited for entry in found for edited in entry["constraints"]]
    assert (len(found), len({entry["key"] for entry in found}), len(constraints)) == (541, 541, 834)
    for entry in found:
        assert len(entry["instruction_id_list"]) == len(entry["constraints"])
    inserted = [words for edited in constraints for _, _, words in edited["edits"] if words]
    assert max(map(len, inserted)) <= 30
    assert sum(map(len, inserted)) < 1000  # the file holds joining words, not IFEval's text


def test_edits_go_from_the_start_to_the_end():
    for entry in entries():
        for edited in entry["constraints"]:
            places = [place for start, end, _ in edited["edits"] for place in (start, end)]
            assert places == sorted(places)


def test_a_prompt_with_one_constraint_is_as_it_was():
    single = [entry for entry in entries() if len(entry["constraints"]) == 1]
    assert len(single) == 305
    assert all(not entry["constraints"][0]["edits"] for entry in single)


def test_every_flattened_prompt_is_the_one_that_was_written(ifeval_prompts):
    prompts = flatten(ifeval_prompts)
    assert len(prompts) == 834
    assert len({prompt.key for prompt in prompts}) == 834
    written = [edited["sha256"] for entry in entries() for edited in entry["constraints"]]
    assert Counter(sha256(prompt.prompt) for prompt in prompts) == Counter(written)
    assert all(len(prompt.instruction_id_list) == len(prompt.kwargs) == 1 for prompt in prompts)


def test_only_words_that_were_there_and_few_others_remain(ifeval_prompts):
    by_key = {str(prompt.key): prompt.prompt for prompt in ifeval_prompts}
    for flat in flatten(ifeval_prompts):
        before = by_key[str(flat.key).rpartition("-")[0]]
        added = Counter(flat.prompt.split()) - Counter(before.split())
        assert sum(map(len, added)) <= 60, flat.key
        assert flat.prompt.strip()
        assert len(flat.prompt) <= len(before) + 30


def test_what_a_verifier_looks_for_stands_in_the_prompt_where_it_stood(ifeval_prompts):
    """Words, phrases and the request to repeat: kept with the constraint, and edited as the prompt was."""
    by_key = {str(prompt.key): prompt for prompt in ifeval_prompts}
    num_repeated = 0
    for flat in flatten(ifeval_prompts):
        key, _, index = str(flat.key).rpartition("-")
        before, old = by_key[key].prompt.lower(), by_key[key].kwargs[int(index)]
        for name, value in flat.kwargs[0].items():
            if name == "prompt_to_repeat":
                num_repeated += 1
                assert (old[name].strip().lower() in before) == (value.strip().lower() in flat.prompt.lower()), flat.key
            texts = value if isinstance(value, list) else [value]
            for text in (text for text in texts if isinstance(text, str) and len(text) > 3):
                if text.lower() in before and "relation" not in name:
                    assert text.lower() in flat.prompt.lower(), (flat.key, name, text)
    assert num_repeated > 30


def test_edits_are_replaced_spans():
    assert apply_edits("abcdef", [(0, 1, "X"), (2, 4, ""), (6, 6, "!")]) == "Xbef!"
    assert apply_edits("abc", []) == "abc"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (1, "Hi.", "IFEval has no key 1"),
        (1000, "Hi.", "key 1000 is not worded as in IFEval's input_data.jsonl"),
    ],
)
def test_other_prompts_are_refused_by_name(key, text, message):
    prompt = ConstrainedPrompt(key, text, ("punctuation:no_comma",), ({},), "mine.jsonl line 3")
    with pytest.raises(DataError, match=f"mine.jsonl line 3: {message}"):
        flatten([prompt])


def test_a_changed_word_in_a_prompt_is_found(ifeval_prompts):
    first = ifeval_prompts[0]
    changed = ConstrainedPrompt(
        first.key, first.prompt.replace("a", "e", 1), first.instruction_id_list, first.kwargs, "mine.jsonl line 1"
    )
    with pytest.raises(DataError, match="not worded as in IFEval"):
        flatten([changed])


def test_the_task_takes_the_flattened_prompts_of_the_first_ones(shared_data, punkt):
    task = load_task(
        "ifeval-flatten", TaskOptions(data=shared_data / "ifeval" / "input_data.jsonl", limit=2, offline=True)
    )
    assert [prompt.key for prompt in task.prompts][:3] == ["1000-0", "1000-1", "1000-2"]
    assert len(task.all_prompts) == 834
    assert task.max_new_tokens == 1280
