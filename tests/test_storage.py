import errno
from pathlib import Path

import pytest

from misotune import storage
from misotune.errors import RunError, UsageError
from misotune.storage import check_own_folder, recover_folder, replace_folder, whole_folder


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch):
    """The two ways to replace a folder; a file system that cannot exchange takes the second."""
    if request.param == "renamed twice":
        monkeypatch.setattr(storage, "_renameat2", lambda: None)
    return request.param


def folder_with(path, text):
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "a").write_text(text)
    return path


def content(path):
    return (path / "sub" / "a").read_text()


def test_the_new_folder_takes_the_place_and_nothing_stays_beside_it(way, tmp_path):
    for text in ("1", "2", "3"):
        replace_folder(folder_with(tmp_path / ".x.partial", text), tmp_path / "x")
        assert content(tmp_path / "x") == text
        assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_to_a_folder_is_replaced_and_its_target_left_alone(way, tmp_path):
    old = folder_with(tmp_path / "elsewhere", "old")
    (tmp_path / "x").symlink_to(old)
    replace_folder(folder_with(tmp_path / ".x.partial", "new"), tmp_path / "x")
    assert (content(tmp_path / "x"), content(old)) == ("new", "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "x"]


def test_an_old_folder_that_was_moved_away_is_brought_back(tmp_path):
    folder_with(tmp_path / ".x.old", "old")
    recover_folder(tmp_path / "x")
    assert content(tmp_path / "x") == "old"
    folder_with(tmp_path / ".x.old", "older")
    recover_folder(tmp_path / "x")
    assert content(tmp_path / "x") == "old"


def test_an_old_folder_is_not_lost_when_the_next_writing_fails(tmp_path):
    folder_with(tmp_path / ".x.old", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / ".x.partial", tmp_path / "x")
    assert content(tmp_path / "x") == "old"


def test_what_is_being_removed_is_never_brought_back(tmp_path):
    folder_with(tmp_path / ".x.gone", "a half")
    recover_folder(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_reader_that_recovers_between_the_two_renames_does_not_stop_the_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_renameat2", lambda: None)
    folder_with(tmp_path / "x", "old")
    rename, recovered = Path.rename, []

    def rename_and_recover(self, target):
        result = rename(self, target)
        if Path(target).name == ".x.old" and not recovered:
            recovered.append(True)
            recover_folder(tmp_path / "x")
        return result

    monkeypatch.setattr(Path, "rename", rename_and_recover)
    replace_folder(folder_with(tmp_path / ".x.partial", "new"), tmp_path / "x")
    assert (content(tmp_path / "x"), recovered) == ("new", [True])


def test_a_folder_may_be_written_where_nothing_or_an_older_one_of_its_kind_is(tmp_path):
    for name in ("absent", "empty", "older"):
        folder = tmp_path / name
        if name != "absent":
            folder.mkdir()
        if name == "older":
            (folder / "mark.json").write_text("{}")
            (folder / "more.txt").write_text("")
        check_own_folder(folder, "mark.json", "result")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "link").symlink_to(tmp_path / "older")
    check_own_folder(tmp_path / "link", "mark.json", "result")


def test_files_other_folders_and_the_working_directory_are_refused(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"mine: holds files that are no result of eval; name another folder with"):
        check_own_folder(tmp_path / "mine", "mark.json", "result of eval")
    with pytest.raises(UsageError, match=r"thesis\.txt: is a file; name a folder with --out"):
        check_own_folder(tmp_path / "mine" / "thesis.txt", "mark.json", "result")
    with pytest.raises(UsageError, match=r"null: is a file"):
        check_own_folder(Path("/dev/null"), "mark.json", "result")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="the working directory cannot be replaced; name a folder in it"):
        check_own_folder(Path(), "mark.json", "result")


def test_a_whole_folder_takes_its_place_at_the_end_alone(way, tmp_path):
    folder = folder_with(tmp_path / "deep" / "x", "old")
    with whole_folder(folder, "result") as partial:
        folder_with(partial, "new")
        assert content(folder) == "old"
    assert content(folder) == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["x"]


def test_what_a_killed_writer_left_is_not_in_the_next_folder(tmp_path):
    folder_with(tmp_path / ".x.partial", "a half")
    with whole_folder(tmp_path / "x", "result") as partial:
        assert list(partial.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("a bug"), SystemExit()])
def test_a_writing_that_fails_leaves_the_old_folder_and_nothing_else(way, tmp_path, error):
    folder = folder_with(tmp_path / "x", "old")
    expected = RunError if isinstance(error, OSError) else type(error)

    def write():
        with whole_folder(folder, "result") as partial:
            folder_with(partial, "new")
            raise error

    with pytest.raises(expected) as caught:
        write()
    if isinstance(error, OSError):
        assert str(caught.value) == f"{folder}: the result cannot be written: No space left on device"
    assert content(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"file/x: the result cannot be written: Not a directory"),
        whole_folder(tmp_path / "file" / "x", "result"),
    ):
        pytest.fail("there is no folder to write into")
