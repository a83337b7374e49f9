"""Where each rank shows the others how far it is, by a thread of its own."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

# Once the run is being ended, for what ranks write last.
_FAST_S = 0.2


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a rank is.

    Attributes:
        rank: Its number.
        host: The machine's name.
        marks: Things done, of any kind; the same sequence on every rank.
        batches: Micro-batches through the model.
        phase: What it is at, in words.
        idle_s: Seconds since it last got further.
        beat: Number of times that it showed itself.
        where: The line of code at which its main thread stands; None before the run is being ended.
        stacks: Where its stacks lie, or why they do not; None before the run is being ended.
        has_left: Whether it ended by itself.
    """

    rank: int
    host: str
    marks: int = 0
    batches: int = 0
    phase: str = "starting"
    idle_s: float = 0.0
    beat: int = 0
    where: str | None = None
    stacks: str | None = None
    has_left: bool = False


class Board:
    """Shows this rank's standing to the others every `beat_s` seconds, and reads theirs while it is asked to.

    The store may stop to answer at any time: only the thread waits for it. A store that is gone is no error here:
    it goes with rank 0 at the end of every run.

    Args:
        open_notes: Connects to the store; called in the thread.
        standing: Returns this rank's standing.
        world_size: Number of ranks.
        beat_s: Seconds between two showings.

    Attributes:
        is_reading: Set it to have `others` read.
        others: The standings of the other ranks, as last read.
        silent_s: For each of them, the seconds through which its standing has not changed, since reading began.
        alarm: The rank that ends the run, once one does.
        words: What the run ends with, once a rank has said it.
        is_lost: The store is gone.
    """

    def __init__(
        self, open_notes: Callable[[], PrefixStore], standing: Callable[[], Standing], world_size: int, beat_s: float
    ) -> None:
        self._open_notes = open_notes
        self._standing = standing
        self._world_size = world_size
        self._beat_s = beat_s
        self._beat = 0
        self._wants_alarm = False
        self._wants_words: str | None = None
        self._wakes = threading.Event()
        self._is_closing = False
        self.is_reading = False
        self.others: dict[int, Standing] = {}
        self.silent_s: dict[int, float] = {}
        self.alarm: int | None = None
        self.words: str | None = None
        self.is_lost = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="misotune-board")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Shows the last standing, and ends the thread; one that the store does not answer is left behind."""
        self._is_closing = True
        self._wakes.set()
        self._thread.join(limit_s)

    def raise_alarm(self) -> None:
        """Tells all ranks to end the run; `alarm` is set once the store has it, and standings are shown fast then."""
        self._wants_alarm = True
        self._wakes.set()

    def say(self, words: str) -> None:
        """Leaves the message that all ranks end with; `words` is set once the store has it: the first one's count."""
        self._wants_words = words
        self._wakes.set()

    def _run(self) -> None:
        try:
            store = self._open_notes()
            while True:
                is_last = self._is_closing
                self._round(store)
                if is_last:
                    return
                self._wakes.wait(_FAST_S if self.alarm is not None else self._beat_s)
                self._wakes.clear()
        except Exception:  # noqa: BLE001 - whatever it is: without the store each rank watches itself
            self.is_lost = True

    def _round(self, store: PrefixStore) -> None:
        self._beat += 1
        mine = replace(self._standing(), beat=self._beat)
        store.set(f"rank/{mine.rank}", json.dumps(asdict(mine)))
        if self._wants_alarm:
            self._wants_alarm = False
            store.compare_set("alarm", "", str(mine.rank))
        if self._wants_words is not None:
            words, self._wants_words = self._wants_words, None
            store.compare_set("words", "", words)
        if store.check(["alarm"]):
            self.alarm = int(store.get("alarm"))
            self.words = store.get("words").decode() if store.check(["words"]) else None
        if self.is_reading or self.alarm is not None:
            self._read(store, mine.rank)

    def _read(self, store: PrefixStore, me: int) -> None:
        ranks = [rank for rank in range(self._world_size) if rank != me]
        keys = {rank: f"rank/{rank}" for rank in ranks}
        if not store.check(list(keys.values())):
            keys = {rank: key for rank, key in keys.items() if store.check([key])}
        values = store.multi_get(list(keys.values())) if keys else []
        for rank, value in zip(keys, values, strict=True):
            standing = Standing(**json.loads(value))
            is_new = standing != self.others.get(rank)
            self.silent_s[rank] = 0.0 if is_new else self.silent_s.get(rank, 0.0) + self._beat_s
            self.others[rank] = standing
