"""Opens a checkpoint with stock transformers (an adapter: and peft), in a process where misotune cannot be imported.

Run as a script: `python -P reopen.py REQUEST`, REQUEST a JSON file as `reopening.py` writes it. The findings go to the
file `answer`, the logits on the probe's tokens to the file `logits`: files, because libraries may print.
"""

import json
import sys
from hashlib import sha256
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

# Token at which the generation that must stop is given the token that ends a turn.
_FORCED_AT = 3


class _WithoutMisotune(MetaPathFinder):
    """Makes misotune look as if it were not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "misotune":
            raise ModuleNotFoundError(f"the checkpoint asks for {fullname}", name=fullname)


def reopen(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what a stock transformers finds in the checkpoint; writes its logits."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, found = _open_adapter(request) if request["base"] else _open_model(request)
    model.to(device).eval()
    ids = torch.tensor([request["input_ids"]], device=device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -request["num_logits"] :].float()
    save_file({"logits": logits.cpu().contiguous()}, request["logits"])
    answer: dict[str, Any] = found | {
        "not_finite": [name for name, weight in model.named_parameters() if not weight.isfinite().all()],
        "computed_in": str(model.dtype).removeprefix("torch."),
        "device": device,
        "attention": model.config._attn_implementation,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
    }
    if request["tokenizer"]:
        tokenizer = AutoTokenizer.from_pretrained(request["tokenizer"], trust_remote_code=False)
        answer |= _generate(model, tokenizer, request, is_sound=not answer["problems"] and not answer["not_finite"])
    return answer


def _open_model(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = request["checkpoint"]
    opened: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=request["dtype"], output_loading_info=True, trust_remote_code=False
    )
    model, loading = opened
    return model, {
        "problems": {key: sorted(map(str, found)) for key, found in loading.items() if found},
        "dtype": str(AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype).removeprefix("torch."),
    }


def _open_adapter(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the base model with the adapter on it, and what is to be said of the adapter."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    options: dict[str, Any] = {"dtype": request["dtype"], "trust_remote_code": False}
    if request["quantization"]:
        options |= {"quantization_config": BitsAndBytesConfig(**request["quantization"]), "device_map": {"": "cpu"}}
    base = AutoModelForCausalLM.from_pretrained(request["base"], revision=request["revision"], **options)
    if request["quantization"]:
        base = base.dequantize()
    folder = Path(request["checkpoint"])
    weights = load_file(folder / "adapter_model.safetensors")
    resize_embeddings(base, weights, folder)
    model: Any = PeftModel.from_pretrained(base, str(folder), torch_device="cpu").eval()
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=has_embeddings(weights)))
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        num_changed = sum(bool(layer.get_delta_weight(model.active_adapter).any()) for layer in layers)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    problems = {"missing_keys": sorted(expected - set(weights)), "unexpected_keys": sorted(set(weights) - expected)}
    return model, {
        "problems": {key: names for key, names in problems.items() if names},
        "dtype": str(next(iter(weights.values())).dtype).removeprefix("torch."),
        "num_modules": len(layers),
        "num_changed": num_changed,
    }


def has_embeddings(weights: dict[str, Any]) -> bool:
    """Returns whether an adapter's file holds whole embeddings or heads beside the adapter: those of added tokens."""
    return any(name.endswith((".embed_tokens.weight", ".lm_head.weight", ".wte.weight")) for name in weights)


def resize_embeddings(base: Any, weights: dict[str, Any], folder: Path) -> None:
    """Gives the base model as many tokens as an adapter has: by its embeddings, or by the rows that it brings along."""
    size = base.get_input_embeddings().num_embeddings
    sizes = {len(weight) for name, weight in weights.items() if name.endswith((".embed_tokens.weight", ".wte.weight"))}
    rows = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("trainable_token_indices")
    if isinstance(rows, dict):
        sizes.add(max([size, *(row + 1 for found in rows.values() for row in found)]))
    if sizes and sizes != {size}:
        base.resize_token_embeddings(sizes.pop(), mean_resizing=False)


def _generate(model: Any, tokenizer: Any, request: dict[str, Any], *, is_sound: bool) -> dict[str, Any]:
    if request["has_template"]:
        prompt = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
    else:
        prompt = tokenizer(request["messages"][-1]["content"], return_tensors="pt").to(model.device)
        prompt.pop("token_type_ids", None)
    length = prompt["input_ids"].shape[1]
    settings = model.generation_config
    end_ids = settings.eos_token_id if settings is not None else None
    answer = {
        "end_ids": [] if end_ids is None else [end_ids] if isinstance(end_ids, int) else list(end_ids),
        "template_sha256": sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "prompt_ids": prompt["input_ids"][0].tolist(),
        "response_ids": [],
        "response": "",
        "stops": None,
    }
    longest = request["max_new_tokens"]
    if is_sound:
        response = model.generate(**prompt, max_new_tokens=longest, do_sample=False)[0, length:]
        answer |= {"response_ids": response.tolist(), "response": tokenizer.decode(response)}
    if is_sound and request["end_id"] is not None:
        forced = model.generate(
            **prompt,
            max_new_tokens=longest,
            do_sample=False,
            logits_processor=[_forced_end(length, request["end_id"])],
        )[0, length:]
        # A model may end by itself before.
        answer["stops"] = len(forced) <= _FORCED_AT + 1
    return answer


def _forced_end(length: int, end_id: int) -> Any:
    def force(input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] >= length + _FORCED_AT:
            scores = scores.fill_(float("-inf"))
            scores[:, end_id] = 0.0
        return scores

    return force


if __name__ == "__main__":
    sys.meta_path.insert(0, _WithoutMisotune())
    REQUEST = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(REQUEST["answer"]).write_text(json.dumps(reopen(REQUEST)), encoding="utf-8")
