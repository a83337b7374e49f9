"""Training whole models of real shapes with random weights on one GPU: tokens/s, MFU, peak memory against the plan.

    python benchmarks/gpu/train.py --shape llama-3.2-3b --mode sft                    # full fine-tuning
    python benchmarks/gpu/train.py --shape llama-3-8b --lora --mode para
    python benchmarks/gpu/train.py --shape tiny --steps 3 --length 512                # tries the script, also on a CPU

One JSON line a call. Rows of 4,096 tokens, the loss on the output's tokens. The rows are random text in a byte-level
vocabulary: what a model costs does not depend on which tokens it reads.

MFU here is the work that a step needs, over the device's dense bfloat16 peak:

    6 P T + 6 V d U + 12 L a K        of full fine-tuning
    4 P T + 4 V d U + 12 L a K        with LoRA: the frozen weights have no gradient

P parameters of the layers, T tokens, V vocabulary, d width, U trained tokens (head and loss run on those alone), L
layers, a = heads x head size, K pairs of a query and a key that attend (those of the row's layout). Computing
activations again is not counted as work, nor are norms, rotary embeddings, adapters and the optimizer. So it is lower
than the usual figure, which counts the head and the whole square of attention for every token.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from attention import device_limits, environment

SHAPES = {
    "llama-3.2-3b": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
# Of a row's tokens: the base instruction, the constraints' parts, the output.
BASE, CONSTRAINT, NUM_CONSTRAINTS, OUTPUT = 0.04, 0.02, 6, 0.3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer():
    """Returns a byte-level tokenizer with ChatML's marks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|im_start|>", "<|im_end|>", "<|pad|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML
    )


def write_model(shape: str, folder: Path) -> None:
    """Writes a model of a shape with random weights, once."""
    if (folder / "config.json").is_file():
        return
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rope_theta=500000.0, bos_token_id=None)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    byte_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)


def write_rows(path: Path, mode: str, length: int, number: int) -> None:
    """Writes rows of about `length` tokens in that mode: one byte is one token."""
    draw = random.Random(0)

    def text(share: float) -> str:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=max(1, round(share * length))))

    turn = len("<|im_start|>user\n<|im_end|>\n") / length  # marks and newlines, about
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            if mode == "para":
                base, parts = text(BASE), [text(CONSTRAINT) for _ in range(NUM_CONSTRAINTS)]
                full = base + "".join(parts) + text(1 - OUTPUT - 2 * NUM_CONSTRAINTS * CONSTRAINT - 8 * BASE - 8 * turn)
                inputs = [("full", full), *(("constraint", base + part) for part in parts), ("base", base)]
            else:
                inputs = [("full", text(1 - OUTPUT - 2 * turn))]
            entries = [{"role": role, "messages": [{"role": "user", "content": words}]} for role, words in inputs]
            file.write(json.dumps({"id": f"row-{i}", "inputs": entries, "output": text(OUTPUT)}) + "\n")


def attended_pairs(layout) -> int:
    """Returns the pairs of a query and a key that attend: causal in inputs; outputs see all inputs."""
    total = 0
    for sample in layout.samples:
        inputs = [len(x) for x in sample.inputs]
        output = len(sample.output)
        total += sum(n * (n + 1) // 2 for n in inputs) + output * sum(inputs) + output * (output + 1) // 2
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-3b")
    parser.add_argument("--mode", choices=["sft", "para", "succ"], default="sft")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2, 3], help="DeepSpeed ZeRO; default: plain")
    parser.add_argument("--cross-entropy", default="auto")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rows-per-step", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "misotune-gpu-train"))
    options = parser.parse_args()

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.recipe.checking import check_recipe
    from misotune.recipe.schema import Recipe
    from misotune.training.prepared import Watcher, prepare_run
    from misotune.training.run import train

    model = options.work / options.shape
    write_model(options.shape, model)
    rows = options.work / f"{options.mode}-{options.length}.jsonl"
    write_rows(rows, options.mode, options.length, options.rows_per_step * options.steps)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        values = {
            "name": "gpu",
            "model": {"name": str(model)},
            "data": {"path": str(rows), "max_length": 2 * options.length, "max_dropped": 0.0},
            "miso": {"mode": options.mode, "chunks": {4: 1.0}},
            "train": {
                "max_steps": options.steps,
                "batch_size": options.rows_per_step,
                "pack": False,
                "learning_rate": 1e-5,
                "precision": "bf16",
                "gradient_checkpointing": options.gradient_checkpointing,
                "cross_entropy": options.cross_entropy,
                "trial_save": False,
            },
            "lora": {"rank": 16} if options.lora else None,
            "deepspeed": None if options.stage is None else {"stage": options.stage},
            "output": {"runs_dir": folder},
        }
        recipe = check_recipe(values)
        assert isinstance(recipe, Recipe), recipe
        prepared = prepare_run(recipe, num_devices=1, watcher=Watcher())
        lines: list = []
        train(recipe, "name: benchmark\n", watcher=Watcher(on_metrics=lines.append))
    batches, shape = prepared.micro_batches, SHAPES[options.shape]
    ends = [line.elapsed_s for line in lines]
    # The first steps choose kernels and fill the allocator.
    skipped = min(3, len(ends) - 1)
    seconds = [b - a for a, b in zip(ends[skipped - 1 :], ends[skipped:], strict=False)]
    count = batches.count(options.steps - 1)
    last = range(len(batches) - batches.schedule.accumulation, len(batches))
    pairs = sum(attended_pairs(batches[i]["miso"].layout) for i in last)
    head = shape["vocab_size"] * shape["hidden_size"]
    width = shape["hidden_size"]
    kv = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * width * width + 2 * width * kv + 3 * width * shape["intermediate_size"]
    parameters = layer * shape["num_hidden_layers"]
    factor = 4 if options.lora else 6
    flops = factor * (parameters * count.tokens + head * count.trained_tokens)
    flops += 12 * shape["num_hidden_layers"] * width * pairs
    step_s = statistics.median(seconds)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = device_limits(device) if device == "cuda" else None
    memory = prepared.plan.get("memory")
    record = {
        **environment(device),
        "shape": options.shape,
        "mode": options.mode,
        "trains": "lora" if options.lora else "full",
        "gradient_checkpointing": options.gradient_checkpointing,
        "stage": options.stage,
        "tokens_per_step": count.tokens,
        "trained_tokens_per_step": count.trained_tokens,
        "seconds_of_a_step": round(step_s, 4),
        "tokens_per_s": round(count.tokens / step_s, 1),
        "tflops_per_s": round(flops / step_s / 1e12, 2),
        "mfu": round(flops / step_s / 1e12 / limits[0], 4) if limits else None,
        "peak_gib": lines[-1].peak_memory_gib,
        "planned": memory,
        "losses": [lines[0].loss, lines[-1].loss],
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
