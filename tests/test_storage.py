import pytest

from misotune import storage
from misotune.storage import recover_folder, replace_folder


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
    from pathlib import Path

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
