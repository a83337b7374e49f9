import json
import multiprocessing
import os
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from misotune.errors import RunError, UsageError
from misotune.evaluation.backends import parallel
from misotune.evaluation.backends.base import generate_responses
from misotune.evaluation.backends.chat_model import load_chat_model
from misotune.evaluation.backends.hf import HfBackend
from misotune.evaluation.backends.parallel import ParallelBackend, choose_devices, open_hf_backend
from misotune.processes import Processes

PROMPTS = [f"Name {n} rivers{' of the north' * (n % 4)}, and say why" for n in range(12)] + ["Hi", "Why?"]
NUM_NEW = 8


def control_file(path):
    """Steers the copies of a model in the processes; beside the folder, whose files tell models apart."""
    return Path(path).with_suffix(".control.json")


def load_steered(path, **options):
    """`load_chat_model` in a process, with trouble as `control_file` has it."""
    found = load_chat_model(path, **options)
    forward = found.model.forward

    def steered(ids, **kwargs):
        control = json.loads(control_file(path).read_text())
        if len(ids) > control.get("most_rows", 100):
            raise torch.OutOfMemoryError
        if "error" in control:
            raise ValueError(control["error"])
        time.sleep(control.get("delay_s", 0))
        return forward(ids, **kwargs)

    found.model.forward = steered
    return found


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir, tmp_path_factory):
    """The tiny model with larger weights and without an end of its own: else it answers every prompt alike."""
    folder = tmp_path_factory.mktemp("parallel") / "model"
    shutil.copytree(tiny_model_dir, folder)
    found = load_chat_model(str(folder))
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "norm" not in name:
                parameter.mul_(10)
        found.model.get_input_embeddings().weight[list(found.eos_ids)] = 0.0
    found.model.save_pretrained(folder)
    return folder


@pytest.fixture
def steer(model_dir):
    def write(**control):
        control_file(model_dir).write_text(json.dumps(control))

    write()
    return write


@pytest.fixture(scope="module")
def shared_backend(model_dir):
    """Two processes for all tests; one that ends them leaves it to the next to start others."""
    with ParallelBackend(str(model_dir), ["cpu", "cpu"], load=load_steered) as backend:
        yield backend


@pytest.fixture
def backend(shared_backend, steer, monkeypatch):
    monkeypatch.setattr(shared_backend, "_batch_sizes", [64, 64])
    monkeypatch.setattr(shared_backend, "_is_size_free", True)
    return shared_backend


@pytest.fixture
def alone(model_dir):
    return HfBackend(load_chat_model(str(model_dir)), 3)


@pytest.fixture
def generate(tmp_path):
    calls = 0

    def run(backend, **options):
        nonlocal calls
        calls += 1
        options.setdefault("cache", tmp_path / f"{calls}.sqlite")
        conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        return generate_responses(backend, conversations, max_new_tokens=NUM_NEW, **options)

    return run


@pytest.fixture
def sent(monkeypatch):
    """The batches that processes were given: number of the process, and size."""
    found = []
    send = Processes.send

    def recorded(self, number, job):
        found.append((number, len(job.prompts)))
        send(self, number, job)

    monkeypatch.setattr(Processes, "send", recorded)
    return found


def workers():
    return multiprocessing.active_children()


def test_two_processes_answer_as_one_does_and_both_have_a_part_in_it(backend, alone, generate, sent):
    expected = generate(alone)
    assert len(set(expected.responses)) > 3
    _ = backend.facts
    while len(backend._idle) < 2:  # both have loaded the model
        for number, facts in backend._receive():
            backend._note_loaded(number, facts)
    found = generate(backend)
    assert found.responses == expected.responses
    assert found.account.num_new_tokens == expected.account.num_new_tokens
    assert found.account.num_cut == expected.account.num_cut
    assert sorted(sent) == [(0, 7), (1, 7)]
    assert found.settings == {**alone.settings(NUM_NEW), "batch_size": 64, "num_processes": 2}
    assert backend.facts == alone.facts


def test_progress_counts_each_token_once_and_ends_complete(backend, generate):
    seen = []
    found = generate(backend, on_progress=seen.append)
    assert [p.num_new_tokens for p in seen] == sorted(p.num_new_tokens for p in seen)
    assert (seen[0].num_done, seen[-1].num_done) == (0, len(PROMPTS))
    assert seen[-1].num_new_tokens == found.account.num_new_tokens


class Stopped(Exception):
    pass


def stop_after(number):
    def on_progress(now):
        if now.num_done >= number:
            raise Stopped

    return on_progress


def test_another_number_of_processes_goes_on_from_the_same_file(backend, alone, generate, tmp_path):
    whole = generate(alone)
    cache = tmp_path / "kept.sqlite"
    with pytest.raises(Stopped):
        generate(alone, cache=cache, on_progress=stop_after(5))
    found = generate(backend, cache=cache)
    assert (found.account.num_kept, found.responses) == (5, whole.responses)
    assert generate(alone, cache=cache).account.num_kept == len(PROMPTS)


def test_memory_that_does_not_hold_a_batch_halves_that_of_its_process_and_nothing_changes(
    backend, alone, generate, steer, sent
):
    steer(most_rows=2)
    found = generate(backend)
    assert found.responses == generate(alone).responses
    assert min(backend._batch_sizes) <= 3  # the other may have had no batch
    assert found.settings["batch_size"] in (1, 2)
    for number in (0, 1):
        sizes = [size for sent_to, size in sent if sent_to == number]
        assert all(later <= max(2, earlier // 2) for earlier, later in pairwise(sizes))


def test_one_prompt_too_large_for_the_memory_is_an_error(backend, generate, steer):
    steer(most_rows=0)
    with pytest.raises(RunError, match=r"^cpu's memory does not hold one prompt with 8 new tokens; lower --max-new"):
        generate(backend)
    assert workers() == []


def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(backend, alone, generate, steer, tmp_path):
    steer(delay_s=0.05)
    cache = tmp_path / "kept.sqlite"
    backend._is_size_free, backend._batch_sizes[:] = False, [1, 1]
    killed_s = 0.0

    def kill(now):
        nonlocal killed_s
        if now.num_done >= 3 and not killed_s:
            os.kill(backend._processes._members[1].process.pid, signal.SIGKILL)
            killed_s = time.monotonic()

    with pytest.raises(
        RunError, match=r"process 2 of 2 \(cpu\) was killed by SIGKILL .*; the responses so far are kept"
    ):
        generate(backend, cache=cache, on_progress=kill)
    assert time.monotonic() - killed_s < 10
    assert workers() == []
    steer()
    found = generate(backend, cache=cache)
    assert found.account.num_kept >= 3
    assert found.responses == generate(alone).responses


def test_an_error_in_a_process_is_one_line_and_ends_the_others(backend, generate, steer):
    steer(error="index 7 is out of order")
    with pytest.raises(RunError) as caught:
        generate(backend)
    assert str(caught.value) == (
        f"process {str(caught.value)[8]} of 2 (cpu): ValueError: index 7 is out of order; the responses so far are "
        "kept: run the same command again, and it goes on from there"
    )
    assert workers() == []


def test_an_interrupt_here_ends_the_processes(backend, generate):
    def interrupt(now):
        if now.num_new_tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(backend, on_progress=interrupt)
    assert workers() == []


def test_prompts_that_do_not_fit_the_context_stop_before_generation(backend, tmp_path):
    conversation = [{"role": "user", "content": "Hi"}]
    with pytest.raises(RunError, match=r"and 4096 new tokens exceed the model's context of 4096"):
        generate_responses(backend, [conversation], max_new_tokens=4096, cache=tmp_path / "c.sqlite")
    assert not (tmp_path / "c.sqlite").exists()


def test_this_process_reads_no_weights_and_names_the_one_that_cannot(model_dir, tmp_path, generate, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("only the others load the model")

    monkeypatch.setattr("misotune.evaluation.backends.chat_model.AutoModelForCausalLM.from_pretrained", refuse)
    before = workers()  # those that other tests share
    shutil.copytree(model_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    with (
        ParallelBackend(str(tmp_path / "broken"), ["cpu"]) as backend,
        pytest.raises(RunError, match=r"^process 1 of 1 \(cpu\): .*broken: the folder's model cannot be loaded"),
    ):
        generate(backend)
    assert workers() == before


def test_what_is_wrong_with_the_name_or_the_dtype_is_told_before_a_process_starts(tiny_model_dir, tmp_path):
    with pytest.raises(UsageError, match="dtype 'int8' is not one of"):
        ParallelBackend(str(tiny_model_dir), ["cpu", "cpu"], dtype="int8")
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(RunError, match="its tokenizer has no chat template"):
        ParallelBackend(str(tmp_path / "base"), ["cpu", "cpu"])


@pytest.mark.parametrize(
    ("prompts", "processes", "size", "share"),
    [(541, 8, 64, 34), (541, 1, 64, 61), (541, 2, 64, 55), (512, 8, 64, 64), (3, 8, 64, 1), (0, 2, 64, 1)],
)
def test_every_process_has_the_same_number_of_batches(prompts, processes, size, share):
    assert parallel._even_share(prompts, processes, size) == share
    assert share <= size
    assert -(-prompts // share) <= processes * -(-prompts // (processes * size))


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_each_visible_device_has_a_process(two_gpus):
    assert choose_devices() == ["cuda:0", "cuda:1"]
    assert choose_devices(1) == ["cuda:0"]
    with pytest.raises(UsageError, match=r"--num-processes 3: each process takes a device of its own, and 2 \(cuda\)"):
        choose_devices(3)


def test_a_cpu_has_one_process_unless_asked_otherwise(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert choose_devices() == ["cpu"]
    assert choose_devices(3) == ["cpu"] * 3


def test_one_device_is_served_in_this_process_and_several_in_others(model_dir, two_gpus, monkeypatch):
    before = workers()
    with open_hf_backend(str(model_dir), batch_size=5) as backend:
        assert isinstance(backend, ParallelBackend)
        assert [start.device for start in backend._starts] == ["cuda:0", "cuda:1"]
        assert backend._batch_sizes == [5, 5]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with open_hf_backend(str(model_dir), batch_size=5) as backend:
        assert isinstance(backend, HfBackend)
        assert backend.settings(3)["batch_size"] == 5
    assert workers() == before
