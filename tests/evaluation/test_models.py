from pathlib import Path

import pytest

from misotune.errors import UsageError
from misotune.evaluation.models import find_model


def test_a_run_folder_stands_for_its_final_model(tmp_path):
    final = tmp_path / "runs" / "a" / "final"
    final.mkdir(parents=True)
    (final / "adapter_config.json").write_text("{}")
    source = find_model(str(final.parent))
    assert source.path == str(final)
    assert source.result_folder("ifeval") == final.parent / "scores" / "ifeval"


def test_a_folder_with_a_model_is_loaded_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    source = find_model(str(tmp_path))
    assert (source.path, source.run) == (str(tmp_path), None)
    assert source.result_folder("ifeval") == Path("scores") / tmp_path.name / "ifeval"


def test_another_name_is_a_hub_id():
    source = find_model("org/model")
    assert (source.path, source.result_folder("starter")) == ("org/model", Path("scores/org--model/starter"))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "runs/a/b"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    with pytest.raises(UsageError, match=f"{name}: no such folder; --model takes a run, a folder with a model"):
        find_model(name)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        find_model(str(tmp_path))
