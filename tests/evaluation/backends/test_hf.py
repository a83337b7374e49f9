import shutil

import pytest
import torch

from misotune.errors import RunError
from misotune.evaluation.backends import hf, prompt_queue
from misotune.evaluation.backends.base import generate_responses
from misotune.evaluation.backends.chat_model import ChatModel, load_chat_model
from misotune.evaluation.backends.hf import HfBackend
from misotune.evaluation.backends.prompt_queue import render

PROMPTS = [
    "Hi",
    "Name three rivers of the north and say why",
    "Why?",
    "A rhyme on soup, please",
    "Go on then",
]
NUM_NEW = 12


@pytest.fixture
def chat_model(tiny_model_dir):
    """The tiny model with larger weights, and without an end of its own.

    As it is initialised, it answers every prompt alike.
    """
    found = load_chat_model(str(tiny_model_dir))
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "norm" not in name:
                parameter.mul_(10)
        found.model.get_input_embeddings().weight[list(found.eos_ids)] = 0.0
    return found


@pytest.fixture
def generate(chat_model, tmp_path):
    """Generates with the model, or another, and keeps nothing between the calls."""
    calls = 0

    def run(prompts=PROMPTS, *, model=chat_model, max_new_tokens=NUM_NEW, batch_size=None, **options):
        nonlocal calls
        calls += 1
        options.setdefault("cache", tmp_path / f"{calls}.sqlite")
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return generate_responses(HfBackend(model, batch_size), conversations, max_new_tokens=max_new_tokens, **options)

    return run


def greedy_ids(chat_model: ChatModel, prompt: str, num_new: int) -> list[int]:
    """Greedy decoding by the definition: one row, no cache, no padding."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = chat_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + num_new and (len(ids) == start or ids[-1] not in chat_model.eos_ids):
        with torch.no_grad():
            ids = [*ids, int(chat_model.model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


@pytest.mark.parametrize("shrinks", [True, False], ids=["shrinking", "batches"])
def test_padded_batches_equal_greedy_decoding_one_by_one(chat_model, generate, monkeypatch, shrinks):
    monkeypatch.setattr(hf, "can_shrink", lambda model: shrinks)
    expected = [
        chat_model.tokenizer.decode(greedy_ids(chat_model, prompt, NUM_NEW), skip_special_tokens=True)
        for prompt in PROMPTS
    ]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 5, None):
        assert generate(batch_size=batch_size).responses == expected


@pytest.mark.parametrize("shrinks", [True, False], ids=["shrinking", "batches"])
def test_a_response_stops_before_any_end_of_sequence_id(chat_model, generate, monkeypatch, shrinks):
    monkeypatch.setattr(hf, "can_shrink", lambda model: shrinks)
    ids = greedy_ids(chat_model, PROMPTS[0], NUM_NEW)
    end = next(i for i in reversed(range(1, NUM_NEW)) if ids[i] not in ids[:i])
    stopping = ChatModel("m", chat_model.model, chat_model.tokenizer, (chat_model.eos_ids[0], ids[end]))
    found = generate(PROMPTS[:1], model=stopping)
    assert found.responses == [chat_model.tokenizer.decode(ids[:end], skip_special_tokens=True)]
    assert (found.account.num_cut, found.account.num_new_tokens) == (0, end + 1)


def test_the_model_reads_the_ids_of_training(chat_model):
    """What `train` makes of a row with one input, up to where the response begins."""
    from misotune.layout.encoding import encode_sample
    from misotune.layout.template import ChatTemplate
    from misotune.samples import Sample, SampleInput

    prompt = "Name three rivers.\n\n* No commas; añade ñ. "
    conversation = ({"role": "user", "content": prompt},)
    sample = Sample("1", "test", "", (SampleInput("full", conversation),), "Po.")
    row = encode_sample(sample, ChatTemplate(chat_model.tokenizer))
    response_start = int(row.is_trained.argmax())
    assert response_start > 0
    (rendered,) = render(chat_model.tokenizer, [conversation])
    assert rendered == [*row.inputs[0], *row.output[:response_start]]
    assert bytes(chat_model.tokenizer.decode(row.output[response_start:]), "utf-8").startswith(b"Po.")


def test_the_models_own_generation_config_has_no_part_in_it_and_is_left_alone(chat_model, generate, monkeypatch):
    expected = generate().responses
    config = chat_model.model.generation_config
    config.repetition_penalty = 5.0
    for shrinks in (True, False):
        monkeypatch.setattr(hf, "can_shrink", lambda model, shrinks=shrinks: shrinks)
        assert generate().responses == expected
        assert chat_model.model.generation_config is config


def test_progress_counts_tokens_at_every_step_and_ends_complete(generate):
    seen = []
    found = generate(batch_size=2, on_progress=seen.append)
    assert len(seen) >= 2 * NUM_NEW
    assert [p.num_new_tokens for p in seen] == sorted(p.num_new_tokens for p in seen)
    assert (seen[0].num_done, seen[0].num_kept) == (0, 0)
    assert (seen[-1].num_done, seen[-1].num_prompts) == (5, 5)
    assert seen[-1].num_new_tokens == found.account.num_new_tokens


def test_settings_and_cut_responses_are_recorded(generate):
    found = generate(max_new_tokens=2, batch_size=3)
    assert found.settings == {
        "backend": "hf", "max_new_tokens": 2, "batch_size": 3, "dtype": "float32", "device": "cpu",
        "decoding": "greedy",
    }  # fmt: skip
    assert found.account.num_cut == len(PROMPTS)


class Stopped(Exception):
    pass


def stop_after(number):
    def on_progress(now):
        if now.num_done == number:
            raise Stopped

    return on_progress


def test_what_was_kept_is_not_generated_again_and_the_result_is_the_same(generate, tmp_path):
    whole = generate(batch_size=2)
    cache = tmp_path / "kept.sqlite"
    with pytest.raises(Stopped):
        generate(batch_size=2, cache=cache, on_progress=stop_after(3))
    seen = []
    resumed = generate(batch_size=4, cache=cache, on_progress=seen.append)
    assert (seen[0].num_done, seen[0].num_kept) == (3, 3)
    assert seen[-1].num_new_tokens == 2 * NUM_NEW
    assert resumed.responses == whole.responses
    assert (resumed.account.num_kept, resumed.account.num_new_tokens) == (3, whole.account.num_new_tokens)
    assert resumed.account.num_cut == whole.account.num_cut


@pytest.mark.parametrize("change", ["weights", "config", "max_new_tokens", "dtype", "ends"])
def test_a_response_of_another_model_or_setting_is_never_taken(generate, chat_model, tiny_model_dir, tmp_path, change):
    import os

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    model = ChatModel(str(folder), chat_model.model, chat_model.tokenizer, chat_model.eos_ids)
    cache = tmp_path / "kept.sqlite"
    generate(model=model, cache=cache)
    assert generate(model=model, cache=cache).account.num_kept == 5
    max_new_tokens = NUM_NEW
    if change == "weights":
        os.utime(folder / "model.safetensors", ns=(1, 1))
    elif change == "config":
        stat = (folder / "config.json").stat()
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("4096", "4095"))
        os.utime(folder / "config.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "max_new_tokens":
        max_new_tokens += 1
    elif change == "dtype":
        model.model.bfloat16()
    else:
        model = ChatModel(str(folder), model.model, model.tokenizer, (*model.eos_ids, 5))
    assert generate(model=model, cache=cache, max_new_tokens=max_new_tokens).account.num_kept == 0


def test_a_context_that_is_too_short_stops_before_generation(generate):
    with pytest.raises(RunError, match=r"the longest prompt \(\d+ tokens\) and 4096 new .*use --max-new-tokens \d+"):
        generate(max_new_tokens=4096)


def out_of_memory_above(model, num_rows):
    forward = model.forward

    def limited(ids, **kwargs):
        if len(ids) > num_rows:
            raise torch.OutOfMemoryError
        return forward(ids, **kwargs)

    return limited


def test_a_batch_too_large_for_the_memory_is_halved_and_nothing_changes(generate, chat_model, monkeypatch):
    expected = generate().responses
    monkeypatch.setattr(chat_model.model, "forward", out_of_memory_above(chat_model.model, 2))
    found = generate(batch_size=16)
    assert found.responses == expected
    assert found.settings["batch_size"] == 2


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [({"_BATCH_TOKENS": 200}, [1, 1, 3]), ({"_PADDING": 10}, [2, 3])],
    ids=["long prompts", "unlike prompts"],
)
def test_a_batch_is_smaller_unless_its_size_is_given(generate, monkeypatch, limit, sizes):
    found = []
    decode = hf.decode_shrinking

    def recorded(model, prompts, **options):
        found.append(len(prompts))
        return decode(model, prompts, **options)

    monkeypatch.setattr(hf, "decode_shrinking", recorded)
    for name, value in limit.items():
        monkeypatch.setattr(prompt_queue, name, value)
    prompts = ["a", "long " * 30, "bb", "long " * 20, "c"]
    responses = generate(prompts).responses
    assert found == sizes
    assert generate(prompts, batch_size=5).responses == responses
    assert found == [*sizes, 5]


def test_one_prompt_too_large_for_the_memory_is_an_error(generate, chat_model, monkeypatch):
    monkeypatch.setattr(chat_model.model, "forward", out_of_memory_above(chat_model.model, 0))
    with pytest.raises(RunError, match="does not hold one prompt with 12 new tokens; lower --max-new-tokens"):
        generate(batch_size=4)


def test_a_response_that_cannot_be_kept_is_named_with_the_way_on(generate, monkeypatch):
    from misotune.chat.cache import AnswerCache

    put = AnswerCache.put

    def read_only(self, key, answer):
        self._db.execute("PRAGMA query_only = ON")
        put(self, key, answer)

    monkeypatch.setattr(AnswerCache, "put", read_only)
    with pytest.raises(RunError, match=r"readonly database\); those before it are: make it .*and run the same"):
        generate()
