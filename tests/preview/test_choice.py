import random

import pytest
from tests.preview.conftest import make_row

from misotune.data.dataset import open_dataset
from misotune.errors import UsageError
from misotune.preview.choice import draw_rows, find_rows, first_rows, iterate_rows, worst_rows


@pytest.fixture
def write(tmp_path):
    import json

    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row.to_row()) + "\n" for row in rows))
        return open_dataset(path)

    return write


def make_rows(number, chunk_of=lambda i: ""):
    rng = random.Random(7)
    return [
        make_row(
            f"row-{i:03d}",
            inputs=(("full", "q" * rng.randrange(1, 200)),),
            output="a" * rng.randrange(1, 200),
            chunk=chunk_of(i),
            confidence=round(0.5 + 0.004 * ((i * 37) % 100), 3),
        )
        for i in range(number)
    ]


def ids(rows):
    return [row.id for row in rows]


def test_rows_of_a_chunk_come_together(write):
    dataset = write(make_rows(7, lambda i: "" if i in (0, 3) else "a" if i < 3 else "b"))
    groups = [(i, ids(rows)) for i, rows in iterate_rows(dataset)]
    assert groups == [
        (0, ["row-000"]),
        (1, ["row-001", "row-002"]),
        (3, ["row-003"]),
        (4, ["row-004", "row-005", "row-006"]),
    ]
    assert [(i, ids(rows)) for i, rows in first_rows(dataset, 4)] == groups
    assert [(i, ids(rows)) for i, rows in find_rows(dataset, ["row-005"])] == groups[-1:]
    assert [(i, ids(rows)) for i, rows in draw_rows(dataset, 100, seed=0)] == groups


def test_drawn_rows_are_a_pure_function_of_the_seed(write):
    dataset = write(make_rows(50))
    first, again, other = ([i for i, _ in draw_rows(dataset, 10, seed)] for seed in (0, 0, 1))
    assert first == again != other
    assert first == sorted(set(first))
    assert len(first) == 10


def test_a_chunk_that_is_drawn_comes_once_and_whole(write):
    dataset = write(make_rows(40, lambda i: str(i // 4)))
    groups = [ids(rows) for _, rows in draw_rows(dataset, 30, seed=3)]
    assert all(len(group) == 4 for group in groups)
    names = [name for group in groups for name in group]
    assert names == sorted(set(names))


def test_rows_are_found_in_the_order_asked_and_once(write):
    dataset = write(make_rows(5))
    found = find_rows(dataset, ["row-004", "row-000", "row-004", "row-002#1"])
    assert [(i, ids(rows)) for i, rows in found] == [(4, ["row-004"]), (0, ["row-000"]), (2, ["row-002"])]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("row-0O3", "--row 'row-0O3': no such row; the nearest: 'row-00"),
        ("ow-002", "no such row; the nearest: 'row-002'"),
        ("zzzzzz", "no such row; the dataset begins with 'row-000', 'row-001', 'row-002'"),
    ],
)
def test_an_unknown_row_names_the_nearest(write, name, message):
    with pytest.raises(UsageError, match=message):
        find_rows(write(make_rows(5)), [name])


def test_the_worst_rows_are_those_of_a_full_search(write, make_reading):
    rows = make_rows(300)
    reading = make_reading()
    found = {label: index for index, _, label in worst_rows(write(rows), 2, reading)}
    encoded = [reading.encode([row]).samples[0] for row in rows]
    longest = sorted(range(300), key=lambda i: (-encoded[i].num_tokens, i))
    fewest = sorted(range(300), key=lambda i: (encoded[i].num_trained_tokens, i))
    unsure = sorted(range(300), key=lambda i: (rows[i].confidence, i))
    expected = {}
    for what, order in (("longest", longest), ("fewest trained tokens", fewest), ("lowest confidence", unsure)):
        for rank in (1, 2):
            expected.setdefault(order[rank - 1], []).append(f"{what}: {rank} of 2")
    assert found == {", ".join(labels): index for index, labels in expected.items()}


def test_a_row_that_is_worst_twice_comes_once(write, make_reading):
    rows = [make_row("only", confidence=0.3), make_row("sure", inputs=(("full", "q"),), output="a" * 99)]
    found = [(i, label) for i, _, label in worst_rows(write(rows), 1, make_reading())]
    assert found == [(0, "longest, fewest trained tokens, lowest confidence")]


def test_rows_that_are_sure_are_not_called_unsure(write, make_reading):
    labels = [label for _, _, label in worst_rows(write([make_row("a"), make_row("b")]), 1, make_reading())]
    assert labels == ["longest, fewest trained tokens"]
