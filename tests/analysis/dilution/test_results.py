import csv
import json

import pytest
import torch

from misotune.analysis.dilution.continuations import Continuation
from misotune.analysis.dilution.results import write_result
from misotune.analysis.dilution.shares import MEASURED, Dilution
from misotune.analysis.result_folder import check_result_folder
from misotune.errors import RunError, UsageError

MADE = {"settings": {}, "versions": {}}
TEXT = Continuation("row", 2, "fid", "Grüße", 3, False, 0.5, 0.0)


@pytest.fixture
def found():
    """Three rows, two numbers of inputs, four layers."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 4)
    return Dilution((1, 2), {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name in MEASURED})


def test_the_folder_holds_shares_texts_and_both_pictures(found, tmp_path):
    folder = tmp_path / "inspect" / "dilution"
    write_result(folder, {"model": "m", **MADE}, found, [TEXT], "a model, some rows")
    assert json.loads((folder / "dilution.json").read_text()) == {"model": "m", **MADE}
    assert json.loads((folder / "continuations.jsonl").read_text())["text"] == "Grüße"
    assert (folder / "dilution.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "dilution.svg").read_text()
    for word in ("a model, some rows", "vanilla (eq. 4)", "uniform (eq. 3)", "fid (eq. 7)", "n = 2", "layer"):
        assert word in svg


def test_the_table_has_a_line_for_each_weighting_n_and_layer(found, tmp_path):
    write_result(tmp_path / "d", MADE, found, [], "title")
    with (tmp_path / "d" / "dilution.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 4
    for row in rows:
        layers = found.by_layer(row["weighting"])[found.counts.index(int(row["num_inputs"]))]
        assert float(row["output_share"]) == pytest.approx(layers[int(row["layer"]) - 1].item(), abs=1e-6)
    assert not (tmp_path / "d" / "continuations.jsonl").exists()


def test_the_same_numbers_draw_the_same_picture(found, tmp_path):
    for name in ("a", "b"):
        write_result(tmp_path / name, MADE, found, [], "title")
    assert (tmp_path / "a" / "dilution.svg").read_bytes() == (tmp_path / "b" / "dilution.svg").read_bytes()


def test_an_older_result_is_replaced_and_nothing_else_is(found, tmp_path):
    folder = tmp_path / "d"
    write_result(folder, {"model": "old", **MADE}, found, [TEXT], "title")
    write_result(folder, {"model": "new", **MADE}, found, [], "title")
    assert json.loads((folder / "dilution.json").read_text()) == {"model": "new", **MADE}
    assert not (folder / "continuations.jsonl").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine: holds files that are no result of inspect dilution"):
        write_result(tmp_path / "mine", MADE, found, [], "title")
    with pytest.raises(UsageError, match=r"notes\.txt: is a file; name a folder with --out"):
        check_result_folder(tmp_path / "mine" / "notes.txt", "dilution")


def test_a_place_that_cannot_be_written_is_named(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/d: the result cannot be written: Not a directory"):
        write_result(tmp_path / "file" / "d", MADE, found, [], "title")
