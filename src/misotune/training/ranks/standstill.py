"""What is said of a run that stands still."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from misotune.runs import RunFolder
from misotune.training.ranks.board import Standing
from misotune.training.ranks.report import number_ranks
from misotune.training.ranks.store import within

# Where a checkpoint's disk is what hangs, the message must not.
_DISK_S = 2.0
_MAX_SHOWN = 6


def describe_standstill(
    standings: Sequence[Standing],
    *,
    world_size: int,
    timeout_s: float,
    folder: Path,
    lost_store: str | None = None,
) -> str:
    """Returns in one line who is missing, where the others stand, where the stacks lie and how to go on.

    Args:
        standings: The ranks', as far as they were seen, this process's first.
        world_size: Number of ranks.
        timeout_s: Seconds for which nothing went on.
        folder: The run's folder of stacks.
        lost_store: Address of the ranks' store, where it does not answer.
    """
    me = standings[0]
    parts = [f"the run stands still: no progress for {_minutes(timeout_s)} (train.timeout_minutes), {_progress(me)}"]
    if lost_store is not None:
        parts.append(
            f"seen from rank {me.rank} on {me.host}, at {me.where}; the ranks' store at {lost_store} does not answer: "
            "rank 0 or its host is stopped, dead or out of reach"
        )
    elif world_size == 1:
        parts.append(f"at {me.where}")
    else:
        parts += _places(standings, world_size)
    unwritten = [standing for standing in standings if standing.stacks and not standing.stacks.endswith(".txt")]
    if len(unwritten) < len(standings):
        parts.append(f"stacks: {folder}/rank-N.txt")
    parts += [f"stacks of rank {standing.rank}: {standing.stacks}" for standing in unwritten[:_MAX_SHOWN]]
    return "; ".join([*parts, _next_command(RunFolder(folder.parent))])


def _places(standings: Sequence[Standing], world_size: int) -> list[str]:
    seen = {standing.rank: standing for standing in standings}
    ended = [standing for standing in standings if standing.stacks is not None]
    furthest = max(ended, key=lambda standing: standing.marks)
    missing = [f"rank {rank} has never been seen" for rank in range(world_size) if rank not in seen]
    for standing in sorted(standings, key=lambda standing: standing.rank):
        who = f"rank {standing.rank} on {standing.host}"
        if standing.has_left:
            missing.append(f"{who} has left, {_progress(standing)}: see what it printed")
        elif standing.stacks is None:
            missing.append(f"{who} is silent (stopped, dead or out of reach), last seen {_progress(standing)}")
        elif standing.marks < furthest.marks:
            missing.append(f"{who} is behind, {_progress(standing)}, at {standing.where}")
    waiting: defaultdict[str, list[Standing]] = defaultdict(list)
    for standing in ended:
        if standing.marks == furthest.marks:
            waiting[str(standing.where)].append(standing)
    lines = [f"{number_ranks([standing.rank for standing in group])} at {where}" for where, group in waiting.items()]
    more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
    parts = [f"missing: {', '.join(missing[:_MAX_SHOWN])}{more}"] if missing else ["no rank is behind the others"]
    return [*parts, f"{'waiting' if missing else 'they stand'}: {', '.join(lines[:_MAX_SHOWN])}"]


def _progress(standing: Standing) -> str:
    batches = f"{standing.batches} micro-batch{'' if standing.batches == 1 else 'es'}"
    return f"{standing.phase}, after {batches}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"


def _next_command(run: RunFolder) -> str:
    try:
        return within(_DISK_S, run.next_command)
    except (OSError, TimeoutError):
        return "its folder cannot be read either"
