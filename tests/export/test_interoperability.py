"""An export is used by what others use: transformers, its server, peft, lm-eval and llama.cpp's GGUF.

What opens it runs in a process in which misotune cannot be imported.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from tests.conftest import CHATML, make_tokenizer
from tests.export.conftest import make_adapter_run, make_full_run

from misotune.export.export import ExportOptions, export_run, export_source
from misotune.export.source import find_source
from misotune.layout import ChatTemplate

pytestmark = pytest.mark.usefixtures("in_process")

CHAT = [{"role": "user", "content": "Name three rivers."}]
NUM_NEW_TOKENS = 24

# In front of each script below.
WITHOUT_MISOTUNE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "misotune":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""

GENERATE = """
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

folder, chat, num_new_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
ids = model.generate(**prompt, max_new_tokens=num_new_tokens, do_sample=False)[0, prompt["input_ids"].shape[1] :]
end = model.generation_config.eos_token_id

def stop_at_once(_, scores):  # the end of turn becomes the likeliest token
    scores[:, end] = scores.max() + 1
    return scores

stopped = model.generate(**prompt, max_new_tokens=num_new_tokens, do_sample=False, logits_processor=[stop_at_once])
pipe = pipeline("text-generation", model=folder, device="cpu")
said = pipe(chat, max_new_tokens=num_new_tokens, do_sample=False)[0]["generated_text"]
print(json.dumps({
    "prompt_ids": prompt["input_ids"][0].tolist(),
    "text": tokenizer.decode(ids, skip_special_tokens=True),
    "num_tokens": len(ids),
    "num_until_stopped": stopped.shape[1] - prompt["input_ids"].shape[1],
    "pipeline": said,
}))
"""

PEFT = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, merged, ids = *sys.argv[1:4], torch.tensor([json.loads(sys.argv[4])])
plain = AutoModelForCausalLM.from_pretrained(base).eval()
with torch.no_grad():
    without = plain(ids).logits
    tuned = PeftModel.from_pretrained(plain, adapter).eval()(ids).logits
    whole = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
print(json.dumps({
    "difference": (tuned - whole).abs().max().item(),
    "effect": (tuned - without).abs().max().item(),
}))
"""

LM_EVAL = """
import lm_eval
from lm_eval.tasks import TaskManager

found = lm_eval.simple_evaluate(
    model="hf",
    model_args=f"pretrained={sys.argv[1]},dtype=float32",
    tasks=["pick", "add"],
    task_manager=TaskManager(include_path=sys.argv[2], include_defaults=False),
    device="cpu",
    batch_size=1,
    apply_chat_template=True,
    bootstrap_iters=0,
)
print(json.dumps({name: {key: value for key, value in scores.items() if key.endswith(",none")}
                  for name, scores in found["results"].items()}))
"""

GGUF = """
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

folder, chat, files = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
tokenizer = AutoTokenizer.from_pretrained(folder)
text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

def look(**options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    file = {key: value for key, value in options.items() if key == "gguf_file"}
    reads = AutoTokenizer.from_pretrained(folder, **file)
    ids = reads(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return ids[0].tolist(), model(ids).logits

ids, logits = look()
found = {}
for file in files:
    template = GGUFReader(f"{folder}/{file}").fields["tokenizer.chat_template"].contents()
    its_ids, its_logits = look(gguf_file=file, quantization_config=GgufConfig(dequantize=True))
    found[file] = {
        "has_template": template == tokenizer.chat_template,
        "has_ids": its_ids == ids,
        "difference": ((its_logits - logits).norm() / logits.norm()).item(),
    }
print(json.dumps(found))
"""

PICK = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {validation: FOLDER/rows.jsonl}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "Q: {{question}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
num_fewshot: 0
"""

ADD = """
task: add
dataset_path: json
dataset_kwargs: {data_files: {validation: FOLDER/rows.jsonl}}
output_type: generate_until
validation_split: validation
doc_to_text: "Q: {{question}}"
doc_to_target: said
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
generation_kwargs: {until: ["Q:"], max_gen_toks: 8, do_sample: false}
num_fewshot: 0
"""


def environment(tmp_path):
    """Returns the variables of a process that has neither misotune's folder, nor the hub, nor a GPU."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_CACHE")}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}


def run(tmp_path, command, **variables):
    """Returns what a command printed."""
    # No subprocess.run: the fixture in_process is in its place.
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environment(tmp_path) | variables,
    ) as process:  # fmt: skip
        out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return out


def without_misotune(tmp_path, script, *arguments):
    """Returns the JSON that a script printed last."""
    command = [sys.executable, "-P", "-c", WITHOUT_MISOTUNE + script, *arguments]
    return json.loads(run(tmp_path, command).splitlines()[-1])


def generate(tmp_path, folder):
    return without_misotune(tmp_path, GENERATE, folder, json.dumps(CHAT), NUM_NEW_TOKENS)


@pytest.fixture
def full(tmp_path):
    """An export of a fully trained model."""
    base, out, tokenizer = tmp_path / "base", tmp_path / "exports" / "full", make_tokenizer()
    tokenizer.save_pretrained(base)
    random_llama(base, len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    export_run(make_full_run(tmp_path / "runs" / "full", base), out)
    return out


@pytest.mark.slow
def test_transformers_and_its_server_generate_what_the_pipeline_does_and_stop(tmp_path, full):
    said = generate(tmp_path, full)
    assert said["prompt_ids"] == list(ChatTemplate(make_tokenizer()).encode(CHAT, add_generation_prompt=True))
    assert said["num_until_stopped"] == 1
    assert said["num_tokens"] == NUM_NEW_TOKENS
    assert len(set(said["text"])) > 5
    answer = {"role": "assistant", "content": said["text"]}
    assert said["pipeline"] == [*CHAT, answer]
    with transformers_serve(tmp_path, full) as url:
        request = {"model": str(full), "messages": CHAT, "max_tokens": NUM_NEW_TOKENS, "temperature": 0}
        found = post(f"{url}/v1/chat/completions", request)
    assert found["object"] == "chat.completion"
    (choice,) = found["choices"]
    assert {key: choice["message"][key] for key in answer} == answer
    assert choice["finish_reason"] == "length"
    assert found["usage"]["prompt_tokens"] == len(said["prompt_ids"])
    assert found["usage"]["completion_tokens"] == NUM_NEW_TOKENS


@contextmanager
def transformers_serve(tmp_path, folder):
    """Runs `transformers serve`; gives its address."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file, stderr=file, cwd=tmp_path, env=environment(tmp_path),
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health", process, log)
        yield url
    finally:
        process.kill()
        process.wait()


def wait_for(url, process, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"no answer from {url}: {log.read_text()[-2000:]}")


def post(url, request):
    head = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode(), head), timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_peft_puts_the_adapter_on_its_base_and_gets_the_merged_model(tmp_path, tiny_model_dir):
    source = find_source(make_adapter_run(tmp_path / "runs" / "lora", tiny_model_dir).path)
    merged, adapter = tmp_path / "exports" / "merged", tmp_path / "exports" / "adapter"
    export_source(source, merged)
    export_source(source, adapter, options=ExportOptions(adapter_only=True))
    ids = list(ChatTemplate(make_tokenizer()).encode(CHAT, add_generation_prompt=True))
    found = without_misotune(tmp_path, PEFT, tiny_model_dir, adapter, merged, json.dumps(ids))
    # Float32 sums in another order: W x + B A x, and (W + B A) x.
    assert found["difference"] < 1e-5
    assert found["effect"] > 1e-2


@pytest.mark.slow
def test_lm_eval_by_itself_has_the_figures_of_misotune_eval(tmp_path, full):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [question(full, number) for number in range(8)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in {"pick": PICK, "add": ADD}.items():
        (tasks / f"{name}.yaml").write_text(text.replace("FOLDER", str(tasks)))
    theirs = without_misotune(tmp_path, LM_EVAL, full, tasks)
    command = [sys.executable, "-m", "misotune", "eval", "pick", "add", "--model", full, "--include-path", tasks]
    command += ["--dtype", "float32", "--offline"]
    run(tmp_path, command, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    for name, num_figures in (("pick", 2), ("add", 1)):
        ours = json.loads((tmp_path / "scores" / "full" / name / "scores.json").read_text())["figures"]
        assert ours == {figure: theirs[name][f"{figure},none"] for figure in ours}
        assert len(ours) == num_figures
        assert all(0 < figure < 1 for figure in ours.values())


def question(folder, number):
    """Returns a question whose answer is, of every other one, what the model says."""
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer()
    text = f"What is {number} and {number}?"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"Q: {text}"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    said = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    said = tokenizer.decode(said, skip_special_tokens=True)
    choices = [str(2 * number), "x" * (1 + number), "yy"]
    return {"question": text, "choices": choices, "gold": number % 3, "said": said if number % 2 else "no"}


@pytest.mark.slow
def test_llama_cpps_converter_makes_gguf_files_of_the_same_ids_and_logits(tmp_path):
    converter = os.environ.get("CONVERT_HF_TO_GGUF")
    if not converter:
        pytest.skip("needs llama.cpp's converter: set CONVERT_HF_TO_GGUF to its command")
    out = tmp_path / "exports" / "full"
    export_source(find_source(sentencepiece_model(tmp_path / "base")), out)
    # The same numbers, but for their order in memory; float16 rounds each weight by up to 2**-11, 5e-4.
    tolerances = {"f32": 1e-6, "f16": 2e-3}
    for numbers in tolerances:
        run(tmp_path, [*shlex.split(converter), out, "--outfile", out / f"{numbers}.gguf", "--outtype", numbers])
    found = without_misotune(tmp_path, GGUF, out, json.dumps(CHAT), *(f"{numbers}.gguf" for numbers in tolerances))
    for numbers, tolerance in tolerances.items():
        one = found[f"{numbers}.gguf"]
        assert (one["has_template"], one["has_ids"]) == (True, True)
        assert one["difference"] < tolerance


def sentencepiece_model(folder):
    """Makes a random Llama with a tokenizer as Llama 2 has it, which the converter takes without knowing it by name."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", *(chr(code) for code in range(33, 127))]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [
            AddedToken(mark, special=True, normalized=False)
            for mark in ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
        ]
    )
    marks = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, **marks).save_pretrained(folder)
    return random_llama(folder, len(words) + 2, eos_token_id=len(words) + 1, pad_token_id=2)


def random_llama(folder, vocab_size, **ids):
    """Makes weights large enough for responses that go from one token to another."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.3, bos_token_id=None, **ids,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
