"""One training step of a whole model on a sample with several inputs, against plain fine-tuning, in one run.

    python benchmarks/step.py                          # SmolLM2-135M's shape with random weights, CPU
    python benchmarks/step.py --device cuda --model FOLDER --dtypes bfloat16

A step here is forward, loss and backward, with the language-model head on the output's tokens alone. Contenders:

    miso     the sample's inputs and its output in one row, MISO attention
    causal   the same tokens as one plain causal row, transformers' own sdpa attention
    pairs    one plain row for each [x_i ; y], one after the other, without padding

They take turns; the figures are medians of rounds.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from attention import environment, synchronize
from misotune.attention import ATTENTION_NAME, MisoArguments, register
from misotune.layout import RowLayout

SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def make_contenders(config, inputs: list[int], output: int, dtype, device: str):
    """Returns the contenders, each one forward, loss and backward."""
    register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME).to(device)
    layout = RowLayout.from_lengths([(inputs, output)])
    ids = torch.randint(0, config.vocab_size, (1, layout.num_tokens), device=device)
    y = layout.samples[0].output

    def step(implementation: str, tokens: torch.Tensor, **options) -> None:
        model.set_attn_implementation(implementation)
        kept = torch.arange(tokens.shape[1] - output, tokens.shape[1] - 1, device=device)
        logits = model(tokens, logits_to_keep=kept, use_cache=False, **options).logits[0].float()
        torch.nn.functional.cross_entropy(logits, tokens[0, kept + 1]).backward()
        model.zero_grad()

    def miso() -> None:
        positions = layout.position_ids[None].to(device)
        step(ATTENTION_NAME, ids, position_ids=positions, miso=MisoArguments(layout))

    def pairs() -> None:
        for x in layout.samples[0].inputs:
            step("sdpa", torch.cat([ids[:, x.tokens], ids[:, y.tokens]], dim=1))

    return {"miso": miso, "causal": lambda: step("sdpa", ids), "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", help="folder or hub id whose config is taken; default: SmolLM2-135M's shape")
    parser.add_argument("--inputs", type=int, nargs="+", default=[180, 60, 60, 70, 65, 45])
    parser.add_argument("--output", type=int, default=300)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    config = AutoConfig.from_pretrained(arguments.model) if arguments.model else LlamaConfig(**SMOLLM2_135M)
    for dtype in arguments.dtypes:
        contenders = make_contenders(
            config, arguments.inputs, arguments.output, getattr(torch, dtype), arguments.device
        )
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds + 1):
            for name, run in contenders.items():
                synchronize(arguments.device)
                start = time.perf_counter()
                run()
                synchronize(arguments.device)
                times[name].append(time.perf_counter() - start)
        seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
        record = {
            "inputs": arguments.inputs,
            "output": arguments.output,
            "dtype": dtype,
            "model": arguments.model or "SmolLM2-135M's shape",
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "miso_by_causal": round(seconds["miso"] / seconds["causal"], 3),
            "miso_by_pairs": round(seconds["miso"] / seconds["pairs"], 3),
        }
        print(json.dumps({**environment(arguments.device), **record}), flush=True)


if __name__ == "__main__":
    main()
