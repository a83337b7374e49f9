import pytest

from misotune.evaluation.context.plots import heat_map
from misotune.evaluation.task import Sample


def samples(lengths, depths):
    return [
        Sample(f"{n}-{d}", "", "", {"length": n, "depth": d, "scores": {"recall": at / (len(lengths) * len(depths))}})
        for at, (n, d) in enumerate((n, d) for n in lengths for d in depths)
    ]


def test_the_map_names_model_lengths_depths_and_recalls(tmp_path):
    found = samples((200, 650, 1100), (0, 50, 100))
    paths = [tmp_path / "needle.svg", tmp_path / "needle.png"]
    heat_map(found[:-1], "some $model$", paths)
    svg = paths[0].read_text()
    for text in ("some $model$", "mean recall 38.9 %", ">200<", ">650<", ">1100<", ">50<", ">78<", "length in tokens"):
        assert text in svg
    assert ">89<" not in svg  # the last one is missing: its place stays white
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_the_same_samples_give_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        heat_map(samples((200, 400), (0, 100)), "m", [tmp_path / name])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(("number", "is_written"), [(13, True), (20, False)])
def test_recalls_are_written_where_there_is_room(tmp_path, number, is_written):
    heat_map(samples(range(1000, 1000 + number), range(number)), "m", [tmp_path / "a.svg"])
    assert (">99<" in (tmp_path / "a.svg").read_text()) == is_written


def test_a_long_path_is_cut_in_front(tmp_path):
    heat_map(samples((200, 400), (0, 100)), "/models" * 20 + "/llama3-crab", [tmp_path / "a.svg"])
    assert "…" in (tmp_path / "a.svg").read_text()
    assert "/models/llama3-crab" in (tmp_path / "a.svg").read_text()
