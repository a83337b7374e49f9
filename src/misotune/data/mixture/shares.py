"""What each domain and source has of a mixture, before and after the draw."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Amount:
    """Rows, and the characters of their responses, which are what is trained on."""

    rows: int = 0
    characters: int = 0

    def add(self, characters: int) -> None:
        """Counts one row."""
        self.rows += 1
        self.characters += characters

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.rows + other.rows, self.characters + other.characters)


@dataclass(slots=True)
class SourceShare:
    """What a mixture took of one source.

    Attributes:
        name: The source.
        domain: Its domain.
        before: What it has.
        after: What was drawn, repeats among it.
        num_different: Different rows drawn.
    """

    name: str
    domain: str
    before: Amount = field(default_factory=Amount)
    after: Amount = field(default_factory=Amount)
    num_different: int = 0

    @property
    def num_repeats(self) -> int:
        """Draws of a row that was drawn before."""
        return self.after.rows - self.num_different

    @property
    def num_left_out(self) -> int:
        """Rows never drawn."""
        return self.before.rows - self.num_different


@dataclass(frozen=True, slots=True)
class MixtureShares:
    """The shares of a mixture.

    Attributes:
        domains: In the order of chunks.
        sources: In the order of the file.
        rows_per_chunk: 1: there are no chunks.
        num_chunks: How many chunks; 0 when there are none.
    """

    domains: tuple[str, ...]
    sources: Sequence[SourceShare]
    rows_per_chunk: int
    num_chunks: int

    def of_domain(self, domain: str) -> tuple[Amount, Amount]:
        """Returns what a domain has, and what was drawn of it."""
        mine = [share for share in self.sources if share.domain == domain]
        return sum((s.before for s in mine), Amount()), sum((s.after for s in mine), Amount())

    def whole(self) -> tuple[Amount, Amount]:
        """Returns what all sources have, and the mixture."""
        return sum((s.before for s in self.sources), Amount()), sum((s.after for s in self.sources), Amount())

    def to_dict(self) -> dict[str, Any]:
        """Returns the shares as the manifest holds them; shares are from 0 to 1."""
        wholes = self.whole()

        def described(amounts: tuple[Amount, Amount]) -> dict[str, dict[str, Any]]:
            return {
                when: {
                    "rows": amount.rows,
                    "share_of_rows": _share(amount.rows, whole.rows),
                    "share_of_response_text": _share(amount.characters, whole.characters),
                }
                for when, amount, whole in zip(("before", "after"), amounts, wholes, strict=True)
            }

        return {
            "rows_per_chunk": self.rows_per_chunk,
            "chunks": self.num_chunks,
            "domains": {domain: described(self.of_domain(domain)) for domain in self.domains},
            "sources": {
                share.name: {
                    "domain": share.domain,
                    **described((share.before, share.after)),
                    "left_out": share.num_left_out,
                    "repeats": share.num_repeats,
                }
                for share in self.sources
            },
        }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
