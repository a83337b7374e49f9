"""Which of the constraints that a response meets a row gets: informative ones, balanced over the types."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import log
from random import Random

from misotune.data.backtranslate.checks import is_met
from misotune.data.backtranslate.constraint_types import ConstraintType, constraint_types, topics_of
from misotune.data.backtranslate.found import Found, Pair
from misotune.data.backtranslate.text import Text
from misotune.data.backtranslate.vocabulary import stem_of

Candidate = tuple[ConstraintType, Found]

_MAX_OF_A_FAMILY = 2
_ENGLISH_SHARE = 0.2
_FEW_WORDS = 8
_FIT_ROUNDS = 10
# What one round may change a weight by, and all rounds together: a type that fits one row in a thousand cannot
# be had more often, however much it weighs.
_ROUND_FACTOR = 3.0
_WEIGHT_RANGE = (0.001, 50.0)


def candidates_of(pair: Pair, left_out: Collection[str], draw: Random) -> list[Candidate]:
    """Returns the constraints that seem to hold and that the instruction leaves room for, one of a type at most."""
    scopes = scopes_of(pair.instruction, pair.response)
    topics = topics_of(pair.instruction.text)
    found: list[Candidate] = []
    for kind in constraint_types().values():
        if kind.scope not in scopes or kind.name in left_out or topics & kind.unless:
            continue
        entry = kind.find(pair, draw)
        if entry is not None:
            found.append((kind, entry))
    return found


def scopes_of(instruction: Text, response: Text) -> frozenset[str]:
    """Returns the scopes that a response is in (see `ConstraintType.scope`)."""
    if response.has_code:
        return frozenset({"all", "code"} if response.code else {"all"})
    scopes = {"all", "text"}
    if not response.is_unspaced:
        scopes.add("spaced")
        is_short = len(response.spoken) < _FEW_WORDS
        shares = (instruction if is_short and response.text.isascii() else response).english_share
        if shares >= _ENGLISH_SHARE:
            scopes.add("english")
    return frozenset(scopes)


def num_wanted(response: Text, least: int, most: int, draw: Random) -> int:
    """Returns how many constraints a response can carry: a short one fewer."""
    num_words = len(response.text.split())
    room = 2 if num_words < 25 else 3 if num_words < 60 else 4 if num_words < 120 else most
    return max(least, min(draw.randint(least, most), room))


def in_drawn_order(candidates: Sequence[Candidate], weights: Mapping[str, float], draw: Random) -> list[Candidate]:
    """Returns the candidates in an order drawn by weight: the first is each with its share of the weights.

    The keys are those of Efraimidis and Spirakis (2006), "Weighted random sampling with a reservoir".
    """
    keys = [log(1.0 - draw.random()) / weights.get(kind.name, kind.weight) for kind, _ in candidates]
    return [candidates[i] for i in sorted(range(len(keys)), key=keys.__getitem__, reverse=True)]


def chosen(candidates: Iterable[Candidate], wanted: int, accept: Callable[[Candidate], bool]) -> list[Candidate]:
    """Returns the first `wanted` candidates that are accepted and add something to those before them.

    Args:
        candidates: In the order of preference.
        wanted: How many to take at most.
        accept: Asked last, because it verifies.
    """
    families: Counter[str] = Counter()
    groups: set[str] = set()
    words: set[str] = set()
    taken: list[Candidate] = []
    for kind, found in candidates:
        if len(taken) == wanted:
            break
        if families[kind.family] >= _MAX_OF_A_FAMILY or groups.intersection(kind.groups):
            continue
        stems = set(map(stem_of, found.words))
        if stems & words:
            continue
        if accept((kind, found)):
            taken.append((kind, found))
            families[kind.family] += 1
            groups.update(kind.groups)
            words |= stems
    return taken


def fitted_weights(rows: Sequence[tuple[Sequence[Candidate], int]], seed: int) -> dict[str, float]:
    """Returns the weight of each type that makes the types occur as often as their `weight` says.

    A type that most responses meet says little about any of them; here it loses weight until it is chosen no more
    often than the rarer ones, which gain.

    Args:
        rows: Of each row of a sample, its candidates and how many it can carry.
        seed: Draws the choices of the trial rounds.
    """
    kinds = {kind.name: kind for candidates, _ in rows for kind, _ in candidates}
    weights = {name: kind.weight for name, kind in kinds.items()}
    total_weight = sum(weights.values())
    for number in range(_FIT_ROUNDS):
        draw = Random(f"{seed}:fit:{number}")
        counts: Counter[str] = Counter()
        for candidates, wanted in rows:
            ordered = in_drawn_order(candidates, weights, draw)
            counts.update(kind.name for kind, _ in chosen(ordered, wanted, lambda _: True))
        for name, kind in kinds.items():
            goal = counts.total() * kind.weight / total_weight
            factor = (goal + 1) / (counts[name] + 1)
            weights[name] *= min(max(factor, 1 / _ROUND_FACTOR), _ROUND_FACTOR)
            weights[name] = min(max(weights[name], _WEIGHT_RANGE[0]), _WEIGHT_RANGE[1])
    return weights


def is_verified(candidate: Candidate, response: Text) -> bool:
    """Returns whether the response meets the constraint by its verifier: the last word."""
    kind, found = candidate
    return is_met(kind.name, found.kwargs, response)
