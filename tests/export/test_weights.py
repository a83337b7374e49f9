"""Weight files in another format and of a largest size hold what they were made from, to the bit or rounded once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from misotune.errors import RunError, UsageError
from misotune.export.export import ExportOptions, export_source
from misotune.export.source import find_source
from misotune.export.weights import WeightFiles, named_dtype, rewrite_weights, size_in_bytes


@pytest.fixture
def weights(tmp_path):
    tensors = {
        "a": torch.randn(10, 10, generator=torch.Generator().manual_seed(0)),
        "b": torch.full((4,), 1e5),
        "c": torch.arange(6),
        "d": torch.randn(50).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tensors


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_each_tensor_is_there_once_and_rounded_once(weights, tmp_path, dtype):
    out = tmp_path / "out"
    out.mkdir()
    rewrite_weights(WeightFiles(tmp_path), out, dtype, 250)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    written = {}
    for file in files:
        tensors = load_file(out / file)
        # The first tensor alone is larger than a file may be.
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 250
        assert not written.keys() & tensors.keys()
        written |= tensors
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    for name, tensor in weights.items():
        expected = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert torch.equal(written[name], expected)
        assert written[name].dtype == expected.dtype


def test_a_number_too_large_for_float16_is_refused(weights, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="b holds numbers too large for float16; take --dtype bfloat16"):
        rewrite_weights(WeightFiles(tmp_path), tmp_path / "out", torch.float16, 10**9)


@pytest.mark.parametrize(
    ("kind", "to", "is_rounded"),
    [("float32", "bfloat16", True), ("bfloat16", "float32", False), ("bfloat16", "float16", True)],
)
def test_widening_rounds_nothing(tmp_path, kind, to, is_rounded):
    save_file({"a": torch.ones(2, dtype=named_dtype(kind)), "n": torch.arange(2)}, tmp_path / "model.safetensors")
    assert WeightFiles(tmp_path).is_rounded_by(named_dtype(to)) is is_rounded


def test_a_missing_or_cut_file_is_named(weights, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"model.safetensors is cut or no weight file .*; copy the checkpoint again"):
        WeightFiles(tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"model.safetensors is missing"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("size", ["", "0", "5 gigabytes", "-1GB", "GB"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(UsageError, match=f"--max-shard-size {size}: not a size; write for example 5GB"):
        size_in_bytes(size)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-1), ("float16", 5e-2)])
def test_an_export_in_another_format_is_proved_to_its_tolerance(full_run, tmp_path, dtype, tolerance):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    report = export_source(find_source(full_run.path), out, options=ExportOptions(dtype=dtype, max_shard_size="40KB"))
    assert report.proof.tolerance == tolerance
    assert report.proof.difference < tolerance / 5
    assert report.proof.dtype == dtype
    assert len(list(out.glob("model-0000?-of-0000?.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == named_dtype(dtype)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.usefixtures("in_process")
def test_a_merged_adapter_is_rounded_once(adapter_run, tmp_path):
    report = export_source(find_source(adapter_run.path), tmp_path / "out", options=ExportOptions(dtype="bfloat16"))
    assert report.proof.dtype == "bfloat16"
    assert report.merge.share == pytest.approx(1.0, abs=0.05)
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


REFUSED = {
    "--adapter-only: .* is a full model": ExportOptions(adapter_only=True),
    "--dtype int8: not one of float32, bfloat16, float16": ExportOptions(dtype="int8"),
    "--push-to-hub mine: not a repository's name": ExportOptions(push_to_hub="mine"),
}


@pytest.mark.parametrize(("message", "options"), REFUSED.items(), ids=["adapter", "dtype", "push"])
def test_options_that_cannot_be_are_refused_before_anything_is_written(full_run, tmp_path, message, options):
    with pytest.raises(UsageError, match=message):
        export_source(find_source(full_run.path), tmp_path / "exports" / "out", options=options)
    assert not (tmp_path / "exports").exists()


def test_an_adapter_alone_keeps_its_format(adapter_run, tmp_path):
    for options in (
        ExportOptions(adapter_only=True, dtype="float16"),
        ExportOptions(adapter_only=True, max_shard_size="5GB"),
    ):
        with pytest.raises(UsageError, match="does not go with --adapter-only"):
            export_source(find_source(adapter_run.path), tmp_path / "out", options=options)


def test_quantised_weights_keep_their_format(full_run, tmp_path):
    path = full_run.final / "config.json"
    quantized = {"quantization_config": {"quant_method": "fp8"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    with pytest.raises(UsageError, match="are quantised, and can only be exported as they are"):
        export_source(find_source(full_run.path), tmp_path / "out", options=ExportOptions(dtype="float16"))


@pytest.mark.usefixtures("in_process")
def test_a_weight_that_is_not_the_rounded_one_is_refused_whatever_the_logits_say(full_run, tmp_path, monkeypatch):
    from misotune.export import making

    class Nudged(WeightFiles):
        """Reads one weight a little off, and only where it is rounded: far below what the logits' tolerance sees."""

        def read(self, name, dtype):
            weight = super().read(name, dtype)
            return weight * 1.01 if dtype is not None and name == "model.norm.weight" else weight

    monkeypatch.setattr(making, "WeightFiles", Nudged)
    with pytest.raises(RunError, match=r"model\.norm\.weight has other values than .*final, rounded"):
        export_source(find_source(full_run.path), tmp_path / "out", options=ExportOptions(dtype="bfloat16"))
    assert not (tmp_path / "out").exists()
