"""Ranks that meet, ranks that do not come, and ranks that differ: real processes over gloo."""

import json
from dataclasses import replace

import pytest
from tests.training.ranks.meeting import Meeting, Rank, hold

from misotune.training.ranks import preflight
from misotune.training.ranks.report import RankReport, disagreement, make_report

# Long enough for all these processes to start on a busy machine.
SHORT = {"MISOTUNE_MEET_SECONDS": "10"}
OTHER_RATE = json.dumps({"name": "a", "train": {"learning_rate": 2e-05}})
MEETINGS = {
    "agree": Meeting(2, [Rank(0), Rank(1)]),
    "agree-at-agent": Meeting(3, [Rank(0), Rank(1), Rank(2)], has_agent=True),
    "late": Meeting(2, [Rank(0, environment=SHORT), Rank(1, prepares_s=13.0, environment=SHORT)]),
    "absent": Meeting(3, [Rank(0, environment=SHORT), Rank(2, environment=SHORT)]),
    "no-rank-0": Meeting(2, [Rank(1, environment=SHORT)]),
    "no-rank-0-at-agent": Meeting(2, [Rank(1, environment=SHORT)], has_agent=True),
    "recipe": Meeting(3, [Rank(0), Rank(1), Rank(2, {"recipe": OTHER_RATE, "host": "gpu7"})]),
    "data": Meeting(2, [Rank(0), Rank(1, {"data": "fedcba9876543210"})]),
    "twice": Meeting(2, [Rank(0, environment=SHORT), Rank(0, environment=SHORT)], has_agent=True),
    "stuck": Meeting(2, [Rank(0, environment=SHORT), Rank(1, is_stuck=True, environment=SHORT)]),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All meetings at once: they share the time for importing torch, and mostly wait."""
    return hold(MEETINGS, tmp_path_factory.mktemp("meetings"))


distributed = [pytest.mark.distributed, pytest.mark.slow]


class TestMeetings:
    """Of real processes."""

    pytestmark = distributed

    @pytest.mark.parametrize("name", ["agree", "agree-at-agent"])
    def test_ranks_that_agree_join_one_group_and_are_described(self, outcomes, name):
        ranks = outcomes[name]
        assert [rank.get("sum") for rank in ranks] == [len(ranks)] * len(ranks), ranks
        found = ranks[0]["found"]
        assert [rank["rank"] for rank in found["ranks"]] == list(range(len(ranks)))
        assert len({rank["pid"] for rank in found["ranks"]}) == len(ranks)
        assert {"torch", "transformers", "misotune"} <= found["versions"].keys()
        assert found["all_reduce"]["ms"] > 0
        (line,) = ranks[0]["messages"]
        assert line.startswith(f"ranks 0-{len(ranks) - 1} (")
        assert "4 MiB summed in" in line
        assert all(rank["messages"] == [] for rank in ranks[1:])

    def test_a_rank_that_still_prepares_is_waited_for(self, outcomes):
        ranks = outcomes["late"]
        assert [rank.get("sum") for rank in ranks] == [2, 2], ranks
        assert ranks[0]["messages"][0] == "waiting for rank 1, still preparing data"

    def test_a_rank_that_does_not_come_is_named_by_all(self, outcomes):
        first, second = outcomes["absent"]
        for rank in (first, second):
            assert "rank 1 of 3 did not come within 10 s; ranks 0, 2 came" in rank["error"]
            assert "MASTER_ADDR" in rank["error"]
            assert "NCCL_SOCKET_IFNAME" in rank["error"]
        # Said once on each host.
        assert (first["kind"], second["kind"]) == ("RunError", "ToldError")

    def test_an_unreachable_rank_0_is_named(self, outcomes):
        (alone,) = outcomes["no-rank-0"]
        assert "rank 1 on " in alone["error"]
        assert "cannot reach rank 0 at 127.0.0.1:" in alone["error"]
        (alone,) = outcomes["no-rank-0-at-agent"]
        assert "rank 0 of 2 did not come within 10 s; rank 1 came" in alone["error"]

    def test_a_rank_with_another_recipe_is_named_with_the_key(self, outcomes):
        for rank in outcomes["recipe"]:
            assert "the recipe's train.learning_rate is 1e-05 on ranks 0-1 (" in rank["error"]
            assert "), but 2e-05 on rank 2 (gpu7)" in rank["error"]

    def test_a_rank_with_other_data_is_named(self, outcomes):
        for rank in outcomes["data"]:
            assert "the encoded data is 0123456789ab on rank 0 (" in rank["error"]
            assert "but fedcba987654 on rank 1 (" in rank["error"]

    def test_two_processes_of_one_rank_are_refused(self, outcomes):
        errors = [rank["error"] for rank in outcomes["twice"] if "error" in rank]
        assert any("two processes say that they are rank 0" in error for error in errors), outcomes["twice"]

    def test_a_rank_that_hangs_while_it_joins_is_named_in_time(self, outcomes):
        rank, _ = outcomes["stuck"]
        assert "could not sum a tensor within 10 s" in rank["error"]
        assert "within 10 s; rank 1 (" in rank["error"]
        assert ") silent: stopped or dead" in rank["error"]
        assert "GLOO_SOCKET_IFNAME" in rank["error"]
        assert rank["seconds"] < 30


def report(rank: int, **changes) -> RankReport:
    return replace(RankReport("{}", "d", {"torch": "2.13.0"}, "cpu", "a", rank, world_size=4), **changes)


def test_reports_that_agree_have_no_disagreement():
    assert disagreement([report(0), report(1, host="b", pid=7, free_disk_gib=3.0, memory_gib=2.0)]) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    {
        "versions": ({"versions": {"torch": "2.10.0"}}, "torch is 2.13.0 on ranks 0-2 (a), but 2.10.0 on rank 3 (b)"),
        "device": ({"device": "cuda"}, "the kind of device is cpu on ranks 0-2 (a), but cuda on rank 3 (b)"),
        "world size": ({"world_size": 8}, "WORLD_SIZE is 4 on ranks 0-2 (a), but 8 on rank 3 (b)"),
        "package": ({"versions": {}}, "torch is 2.13.0 on ranks 0-2 (a), but not set on rank 3 (b)"),
        "own problem": ({"problem": "LOCAL_RANK is 3"}, "rank 3 on b: LOCAL_RANK is 3"),
    }.values(),
    ids=["versions", "device", "world-size", "package", "own-problem"],
)
def test_what_differs_is_named_with_its_ranks(changes, words):
    assert words in (disagreement([report(0), report(1), report(2), report(3, host="b", **changes)]) or "")


def test_another_checkout_is_refused_between_hosts_alone():
    assert disagreement([report(0, code="1"), report(1, code="2")]) is None
    assert "misotune's code is 1 on rank 0 (a), but 2 on rank 1 (b)" in (
        disagreement([report(0, code="1"), report(1, code="2", host="b")]) or ""
    )


def test_two_ranks_on_one_gpu_are_refused():
    reports = [report(rank, device="cuda", gpu="H100", gpu_id=("x", "y", "x")[rank]) for rank in range(3)]
    assert "ranks 0, 2 (a) use the same H100" in (disagreement(reports) or "")


def test_one_process_meets_nobody_and_is_described(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    preflight.appear()
    found = preflight.meet(make_report("{}", "d", tmp_path / "not" / "there"), timeout_minutes=1)
    assert found["all_reduce"] is None
    assert [rank["rank"] for rank in found["ranks"]] == [0]
    assert found["ranks"][0]["free_disk_gib"] > 0
