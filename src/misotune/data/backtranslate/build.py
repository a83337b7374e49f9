"""Back-translation: plain instruction-response pairs get constraints that their responses already meet.

Nothing is generated: a constraint is found in the response, put into hand-written words, and verified before it is
kept. A first look at the head of the stream fits the balance of the types and the vocabulary; from there on each
row depends on its own text, its id and the seed alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from random import Random

from misotune import verifiers
from misotune.data.account import Account
from misotune.data.backtranslate.choice import (
    Candidate,
    candidates_of,
    chosen,
    fitted_weights,
    in_drawn_order,
    is_verified,
    num_wanted,
)
from misotune.data.backtranslate.found import Pair
from misotune.data.backtranslate.text import Text
from misotune.data.backtranslate.vocabulary import Vocabulary, read_vocabulary
from misotune.data.records import Record, Template
from misotune.data.sources.fields import Join, template_chooser
from misotune.data.workers import map_in_order

RULE = "backtranslate"
TOO_FEW = "fewer constraints than asked for are met by the response"
LAST_ANSWER_ONLY = "chat: constraints on the last user turn, loss on its answer alone"
NUM_FIT = 2000
# The balance needs fewer rows than the vocabulary.
_NUM_BALANCED = 1000
# Longer responses are cut for nobody's sake: nothing about 40,000 characters can be stated in a few words.
_MAX_CHARACTERS = 40_000

_TEMPLATES = (
    Template("{instruction}\n\n{constraints}"),
    Template("{instruction}\n\n{constraints}", "- {item}"),
    Template("{instruction}\n\n{constraints}", "{index}. {item}"),
    Template("{instruction}\n\nRequirements:\n{constraints}", "- {item}"),
    Template("{instruction}\n\nPlease keep to the following:\n{constraints}", "* {item}"),
    Template("{instruction}\n\n{constraints}", separator=" "),
)
_IN_LINE = Template("{instruction} {constraints}", separator=" ")
_MAX_WORDS_IN_LINE = 40


@dataclass(frozen=True, slots=True)
class Backtranslator:
    """Gives a record its constraints: pure and picklable, so that worker processes can do it.

    Attributes:
        seed: With the record's id it decides all that is drawn.
        min_constraints: A row that meets fewer keeps its one input.
        max_constraints: What a long response gets at most.
        join: How constraints are joined to the instruction; None: drawn, to suit the instruction.
        weights: The weight of each type.
        vocabulary: Where keywords and forbidden words come from.
        left_out: Types that cannot be verified here.
    """

    seed: int
    min_constraints: int
    max_constraints: int
    join: Join | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    left_out: frozenset[str] = frozenset()

    def __call__(self, record: Record) -> Record:
        """Returns the record with constraints; one that has some already as it is."""
        if record.constraints:
            return record
        draw = Random(f"{self.seed}:{record.id}")
        pair = self.pair_of(record)
        candidates, wanted = self.choices_of(pair, draw)
        ordered = in_drawn_order(candidates, self.weights, draw)
        taken = chosen(ordered, wanted, lambda candidate: is_verified(candidate, pair.response))
        if len(taken) < self.min_constraints:
            return replace(record, one_input=TOO_FEW)
        return replace(
            record,
            constraints=tuple(kind.put_into_words(found, draw) for kind, found in taken),
            checks=tuple((kind.name, dict(found.kwargs)) for kind, found in taken),
            template=self._template_of(record, draw),
            full_text=None,
            rule=RULE,
            one_input=None,
            history_loss=False,
            notes=(*record.notes, LAST_ANSWER_ONLY) if record.history_loss else record.notes,
        )

    def pair_of(self, record: Record) -> Pair:
        """Returns the record's last turn, with the system message that also instructs, and its answer."""
        system = [message["content"] for message in record.history if message["role"] == "system"]
        return Pair(Text("\n".join([*system, record.instruction])), Text(record.output), self.vocabulary)

    def choices_of(self, pair: Pair, draw: Random) -> tuple[list[Candidate], int]:
        """Returns the constraints that the response seems to meet, and how many of them to take."""
        wanted = num_wanted(pair.response, self.min_constraints, self.max_constraints, draw)
        if len(pair.response.text) > _MAX_CHARACTERS:
            return [], wanted
        return candidates_of(pair, self.left_out, draw), wanted

    def _template_of(self, record: Record, draw: Random) -> Template:
        if self.join is not None:
            return template_chooser(self.join, self.seed)(record.id)
        # Behind a text to work on, or an unfinished sentence, constraints in line would read as part of it.
        text = record.instruction.rstrip()
        fits_in_line = "\n" not in text and text.endswith((".", "?", "!")) and len(text.split()) <= _MAX_WORDS_IN_LINE
        return draw.choice((*_TEMPLATES, _IN_LINE, _IN_LINE) if fits_in_line else _TEMPLATES)


@dataclass
class Backtranslation:
    """The step of `prepare backtranslate`.

    Attributes:
        seed: Decides, with a row's id, all that is drawn.
        min_constraints: A row whose response meets fewer keeps its one input.
        max_constraints: Constraints of a row at most.
        join: How constraints are joined to the instruction; None: drawn, to suit the instruction.
        workers: Processes that work on the rows; with 0 or 1 this one does.
        notes: What was left out, and the cure; filled when the step runs.
    """

    seed: int = 0
    min_constraints: int = 2
    max_constraints: int = 5
    join: Join | None = None
    workers: int = 1
    notes: tuple[str, ...] = ()

    def __call__(self, records: Iterable[Record], account: Account) -> Iterator[Record]:
        """Yields every record, with constraints where the response meets enough of them."""
        stream = iter(records)
        head = list(islice(stream, NUM_FIT))
        yield from map_in_order(self.fit(head), chain(head, stream), self.workers)

    def fit(self, records: Iterable[Record]) -> Backtranslator:
        """Returns what translates records like these: the weights of the types and the vocabulary are theirs."""
        left_out = frozenset() if verifiers.has_punkt() else verifiers.PUNKT_TYPES
        if left_out:
            self.notes = (
                f"left out, without NLTK's punkt_tab data: {', '.join(sorted(left_out))}; {verifiers.PUNKT_CURE}",
            )
        plain = [record for record in records if not record.constraints and len(record.output) <= _MAX_CHARACTERS]
        vocabulary = read_vocabulary(Text(record.output) for record in plain)
        unfitted = Backtranslator(
            self.seed, self.min_constraints, self.max_constraints, self.join, {}, vocabulary, left_out
        )
        rows = [
            unfitted.choices_of(unfitted.pair_of(record), Random(f"{self.seed}:{record.id}"))
            for record in plain[:_NUM_BALANCED]
        ]
        return replace(unfitted, weights=fitted_weights(rows, self.seed))
