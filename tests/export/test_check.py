"""`--check` repeats the proof, and each thing broken on purpose is named; others tell what is not known."""

import json
import shutil

import pytest
from tests.export.conftest import make_adapter_run, make_full_run

from misotune.errors import RunError, UsageError
from misotune.export.check import check_export
from misotune.export.export import ExportOptions, export_source
from misotune.export.record import RECORD
from misotune.export.source import find_source

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def exported(full_run, tmp_path):
    out = tmp_path / "exports" / "tiny"
    export_source(find_source(full_run.path), out, options=ExportOptions(max_shard_size="40KB"))
    return out


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(path, change_weights, name):
    """Changes a tensor, and the record with it: as if it had been exported so."""
    from misotune.export.record import weight_entries

    change_weights(path, lambda tensors: tensors[name].mul_(1.5))
    edit_json(path.parent / RECORD, weights=weight_entries(path.parent))


def test_an_export_is_proved_again_by_its_record(exported):
    assert (exported / RECORD).stat().st_size < 20_000
    report = check_export(exported)
    assert report.exported == "the run tiny"
    assert report.not_checked == []
    assert "are those that were exported, to the bit" in report.checked[0]
    assert "Its logits differ from the trained model's by" in report.checked[2]


def test_each_thing_broken_is_named(exported, change_weights, tmp_path):
    def broken(name):
        shutil.copytree(exported, tmp_path / name)
        return tmp_path / name

    cut = broken("cut") / "model-00002-of-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"cut: model-00002-of-00003.safetensors has [\d,]+ bytes of [\d,]+; copy or ex"):
        check_export(cut.parent)
    cut.unlink()
    with pytest.raises(RunError, match=r"model-00002-of-00003.safetensors is missing; copy or export it again"):
        check_export(cut.parent)

    changed = broken("changed") / "model-00002-of-00003.safetensors"
    name = "model.layers.0.mlp.down_proj.weight"
    change_weights(changed, lambda tensors: tensors[name].mul_(1.5))
    with pytest.raises(RunError, match=r"00003.safetensors has changed since it was exported"):
        check_export(changed.parent)
    rewrite(changed, change_weights, name)
    with pytest.raises(RunError, match=r"its logits differ from the trained model's by .*more than 1e-04"):
        check_export(changed.parent)

    template = broken("template") / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|pad|>"))
    with pytest.raises(RunError, match="template: its chat template gives other tokens than training's"):
        check_export(template.parent)

    end = broken("end") / "generation_config.json"
    edit_json(end, eos_token_id=5)
    with pytest.raises(RunError, match=r"end: generation does not stop at token 257, .* eos_token_id of generation_co"):
        check_export(end.parent)

    record = broken("record") / RECORD
    record.write_text("{}")
    with pytest.raises(RunError, match=r"cannot be read \(KeyError: 'logits'\); delete it to check what can be"):
        check_export(record.parent)


def test_a_checkpoint_from_elsewhere_tells_what_could_not_be_checked(tiny_model_dir, tmp_path):
    report = check_export(tiny_model_dir)
    assert report.exported is None
    assert "with no code of its own" in report.checked[0]
    assert "Generation stops at token 257" in report.checked[1]
    assert [line.partition(":")[0] for line in report.not_checked] == [
        "That its logits are those of the trained model",
        "That its weight files are unchanged",
        "That its chat template gives the tokens of training",
    ]
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model_dir, bare)
    (bare / "chat_template.jinja").unlink()
    assert check_export(bare).not_checked[-1].endswith("a response ends: its tokenizer has no chat template.")
    edit_json(bare / "config.json", num_hidden_layers=3)
    with pytest.raises(RunError, match=r"bare: missing keys: .* and 6 more"):
        check_export(bare)


def test_a_checkpoint_from_elsewhere_that_never_stops_is_named(tiny_model_dir, tmp_path):
    folder = tmp_path / "endless"
    shutil.copytree(tiny_model_dir, folder)
    edit_json(folder / "generation_config.json", eos_token_id=5)
    with pytest.raises(RunError, match="endless: generation does not stop at token 257"):
        check_export(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint: it has neither config.json nor adapter_config.json"):
        check_export(tmp_path)


def test_adapters_are_checked_with_and_without_a_record(tiny_model_dir, tmp_path, change_weights):
    run = make_adapter_run(tmp_path / "runs" / "lora", tiny_model_dir)
    report = check_export(run.final)
    assert "The adapter changes 14 of 14 modules." in report.checked
    out = tmp_path / "adapter"
    export_source(find_source(run.path), out, options=ExportOptions(adapter_only=True))
    assert "The adapter changes 14 modules." in check_export(out).checked

    def zero(tensors):
        for tensor in tensors.values():
            tensor.zero_()

    change_weights(run.final / "adapter_model.safetensors", zero)
    with pytest.raises(RunError, match="final: the adapter is zero in every module"):
        check_export(run.final)


def test_a_template_that_tells_the_day_is_compared_by_its_text_on_another(tiny_model_dir, tmp_path):
    dated = tmp_path / "dated"
    shutil.copytree(tiny_model_dir, dated)
    path = dated / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}" + path.read_text())
    run = make_full_run(tmp_path / "runs" / "dated", dated)
    out = tmp_path / "out"
    export_source(find_source(run.path), out)
    record = json.loads((out / RECORD).read_text())
    assert record["chat"]["day"]
    record["chat"] |= {"day": "2024-02-01", "prompt_ids": [1, 2]}
    (out / RECORD).write_text(json.dumps(record))
    assert check_export(out).not_checked == []
    (out / "chat_template.jinja").write_text(path.read_text() + " ")
    with pytest.raises(RunError, match="its chat template gives other tokens than training's"):
        check_export(out)
