import os

import pytest

from misotune.errors import UsageError
from misotune.runs import RunFolder, newest_finished_run, run_at


def make_run(root, name, *, is_finished, time):
    run = RunFolder(root / name)
    run.path.mkdir(parents=True)
    run.recipe.write_text("name: x\n")
    if is_finished:
        run.final.mkdir()
        (run.final / "config.json").write_text("{}")
        os.utime(run.final, (time, time))
    return run


def test_newest_finished_run_passes_over_unfinished_ones(tmp_path):
    make_run(tmp_path, "old", is_finished=True, time=1)
    newer = make_run(tmp_path, "newer", is_finished=True, time=2)
    make_run(tmp_path, "unfinished", is_finished=False, time=3)
    assert newest_finished_run(tmp_path) == newer


def test_no_finished_run_is_said_with_the_cure(tmp_path):
    make_run(tmp_path, "unfinished", is_finished=False, time=3)
    with pytest.raises(UsageError, match=r"no finished run in .*train one: misotune train RECIPE"):
        newest_finished_run(tmp_path)


def test_unfinished_and_other_folders_are_told_apart(tmp_path):
    unfinished = make_run(tmp_path, "unfinished", is_finished=False, time=3)
    with pytest.raises(UsageError, match="training did not finish"):
        run_at(unfinished.path)
    with pytest.raises(UsageError, match="not a run folder"):
        run_at(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        run_at(tmp_path / "nothing")
