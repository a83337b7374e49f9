"""Before the first step: the ranks find one another, and agree on what they will train."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankReport:
    """What must be the same on every rank, and where it runs.

    Attributes:
        recipe: Hash of the resolved recipe.
        data: Hash of the encoded corpus.
        versions: Of the packages that compute.
        device: Kind of device: `cpu`, or the GPU's name.
        host: Name of the machine.
    """

    recipe: str
    data: str
    versions: dict[str, str]
    device: str
    host: str


def meet(report: RankReport, *, timeout_minutes: float) -> dict[str, object]:
    """Joins the ranks to one process group, once they agree; returns what was found, for `environment.json`."""
    return {}
