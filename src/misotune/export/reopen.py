"""Opens a checkpoint with stock transformers, in a process of its own where misotune cannot be imported.

Run as a script: `python -P reopen.py REQUEST`, REQUEST a JSON file with `checkpoint`, `probe`, `num_logits`,
`dtype`, `messages`, `max_new_tokens`, `answer` and `logits`. The findings go to the file `answer`, the logits on the
probe's tokens to the file `logits`: files, because libraries may print.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class _WithoutMisotune(MetaPathFinder):
    """Makes misotune look as if it were not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "misotune":
            raise ModuleNotFoundError(f"the checkpoint asks for {fullname}", name=fullname)


def reopen(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what a stock transformers finds in the checkpoint; writes its logits."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = request["checkpoint"]
    opened: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=request["dtype"], output_loading_info=True)
    model, loading = opened
    model.to(device).eval()
    ids = load_file(request["probe"])["input_ids"].long()[None].to(device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -request["num_logits"] :].float()
    save_file({"logits": logits.cpu().contiguous()}, request["logits"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template(
        request["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(device)
    answer: dict[str, Any] = {
        "problems": {key: sorted(map(str, found)) for key, found in loading.items() if found},
        "not_finite": [name for name, weight in model.named_parameters() if not weight.isfinite().all()],
        "dtype": str(AutoConfig.from_pretrained(checkpoint).dtype).removeprefix("torch."),
        "computed_in": str(model.dtype).removeprefix("torch."),
        "device": device,
        "attention": model.config._attn_implementation,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "end_ids": model.generation_config.eos_token_id,
        "prompt_ids": prompt["input_ids"][0].tolist(),
        "response_ids": [],
        "response": "",
    }
    if not answer["problems"] and not answer["not_finite"]:
        longest = request["max_new_tokens"]
        full = model.generate(**prompt, max_new_tokens=longest, do_sample=False)[0]
        response = full[prompt["input_ids"].shape[1] :]
        answer |= {"response_ids": response.tolist(), "response": tokenizer.decode(response)}
    return answer


if __name__ == "__main__":
    sys.meta_path.insert(0, _WithoutMisotune())
    REQUEST = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(REQUEST["answer"]).write_text(json.dumps(reopen(REQUEST)), encoding="utf-8")
