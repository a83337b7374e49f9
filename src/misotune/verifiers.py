"""The one seam to lm-eval's copy of the IFEval verifiers.

Verdicts repeat: langdetect is seeded, and Python's `random` is seeded before every constraint, because a
verifier draws what its arguments do not state (IFEval's keys 1122 and 1129 ask for a "letter" that is none).
"""

import contextlib
import difflib
import functools
import io
import logging
import os
import random
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from misotune.errors import DataError, RunError

SEED = 0

# The verifiers that cut text with NLTK's Punkt tokenizer. All others need no data: `number_words` counts by a
# regular expression, and the language checks use the profiles inside langdetect.
PUNKT_TYPES = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})

# Those that ask langdetect, which draws.
_RANDOM_TYPES = frozenset(
    {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}
)
_SURE_LANGUAGE = 0.95
# langdetect may be sure of one thing with one seed and of another with the next.
_LANGUAGE_SEEDS = range(4)

PUNKT_CURE = (
    "run `python -m nltk.downloader punkt_tab` where there is internet, "
    "or set NLTK_DATA to a folder that holds tokenizers/punkt_tab"
)
_DOWNLOAD_TIMEOUT_S = 15.0
# A verifier draws from at least two values; over these seeds no draw stays the same by chance.
_DRAW_SEEDS = range(16)


class Verifiable(Protocol):
    """A prompt with its constraints, in IFEval's terms; `evaluation.constrained.ConstrainedPrompt` is one."""

    @property
    def prompt(self) -> str:
        """The user turn."""
        ...

    @property
    def instruction_id_list(self) -> Sequence[str]:
        """Constraint types, such as `punctuation:no_comma`."""
        ...

    @property
    def kwargs(self) -> Sequence[Mapping[str, Any]]:
        """The arguments of each constraint's verifier, in the order of `instruction_id_list`."""
        ...

    @property
    def where(self) -> str:
        """What to call the prompt in an error: file and line."""
        ...


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Whether a response meets each constraint, in the order of `instruction_id_list`.

    Loose verdicts also accept the response without its first line, last line, asterisks, or several of these.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def is_offline() -> bool:
    """Returns whether the environment forbids the use of the network (the hub's variable)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def ensure_verifiers(prompts: Sequence[Verifiable], *, offline: bool) -> None:
    """Makes sure that every constraint of the prompts can be verified, before anything is generated.

    Raises:
        RunError: A constraint needs NLTK's Punkt data, which is neither here nor to be had.
        DataError: A constraint's type is unknown or its arguments are wrong; names the row.
    """
    _ensure_punkt(prompts, offline=offline)
    registry = _lm_eval_registry()
    with _repeatable():
        for prompt in prompts:
            for name, kwargs in zip(prompt.instruction_id_list, prompt.kwargs, strict=True):
                if name not in registry:
                    raise DataError(f"{prompt.where}: {_unknown_type(name, registry)}")
                _try_constraint(registry[name], name, kwargs, prompt.where)


def verify(prompt: Verifiable, response: str) -> Verdicts:
    """Returns the verdicts of lm-eval's verifiers on a response; call `ensure_verifiers` first.

    Each constraint is verified by a call of its own, so that its seed does not depend on those before it.
    """
    from lm_eval.tasks.ifeval import utils

    strict: list[bool] = []
    loose: list[bool] = []
    with _repeatable():
        for name, kwargs in zip(prompt.instruction_id_list, prompt.kwargs, strict=True):
            example = utils.InputExample(key=0, instruction_id_list=[name], prompt=prompt.prompt, kwargs=[dict(kwargs)])
            random.seed(SEED)
            strict += utils.test_instruction_following_strict(example, response).follow_instruction_list
            random.seed(SEED)
            loose += utils.test_instruction_following_loose(example, response).follow_instruction_list
    return Verdicts(tuple(map(bool, strict)), tuple(map(bool, loose)))


def is_met(name: str, kwargs: Mapping[str, Any], response: str) -> bool:
    """Returns lm-eval's strict verdict on one constraint whose arguments are complete.

    Raises:
        KeyError: There is no such constraint type.
        LookupError: The type needs NLTK's Punkt data (see `PUNKT_TYPES` and `has_punkt`).
    """
    verifier = _lm_eval_registry()[name]
    if not response.strip():
        return False
    if name not in _RANDOM_TYPES:
        return bool(_build(verifier, name, kwargs).check_following(response))
    with _repeatable():
        return bool(_build(verifier, name, kwargs).check_following(response))


def constraint_types() -> tuple[str, ...]:
    """Returns the names of lm-eval's constraint types, in alphabetical order."""
    return tuple(sorted(_lm_eval_registry()))


def language_of(text: str) -> tuple[str, str] | None:
    """Returns a text's language, as the code and the English name that the verifiers use.

    None: langdetect is not sure, or sees something else with another seed, or the verifiers have no name for
    the language.
    """
    import langdetect

    _lm_eval_registry()  # imports the next module without its download
    from lm_eval.tasks.ifeval.instructions_util import LANGUAGE_CODES

    found: set[str] = set()
    with _repeatable():
        for seed in _LANGUAGE_SEEDS:
            langdetect.DetectorFactory.seed = seed
            try:
                best = langdetect.detect_langs(text)[0]
            except langdetect.LangDetectException:
                return None
            found.add(str(best.lang) if best.prob >= _SURE_LANGUAGE else "")
    code = found.pop()
    return (code, LANGUAGE_CODES[code]) if not found and code in LANGUAGE_CODES else None


def drawn_constraints(prompt: Verifiable) -> tuple[int, ...]:
    """Returns the indices of the constraints whose verifier draws an argument (seeded: it repeats)."""
    registry = _lm_eval_registry()
    drawn: list[int] = []
    with _repeatable():
        for index, (name, kwargs) in enumerate(zip(prompt.instruction_id_list, prompt.kwargs, strict=True)):
            seen = {_built_arguments(registry[name], name, kwargs, seed) for seed in _DRAW_SEEDS}
            if len(seen) > 1:
                drawn.append(index)
    return tuple(drawn)


def _build(verifier: Any, name: str, kwargs: Mapping[str, Any]) -> Any:
    instruction = verifier(name)
    # lm-eval drops every false value, not only null; what is built here must be what it verifies with.
    instruction.build_description(**{key: value for key, value in kwargs.items() if value})
    return instruction


def _built_arguments(verifier: Any, name: str, kwargs: Mapping[str, Any], seed: int) -> str:
    random.seed(seed)
    return repr(_build(verifier, name, kwargs).get_instruction_args())


def _try_constraint(verifier: Any, name: str, kwargs: Mapping[str, Any], where: str) -> None:
    try:
        # A keyword is used as a regular expression: a wrong one shows only when a text is checked.
        _build(verifier, name, kwargs).check_following("A text to try the verifier on.")
    except (TypeError, ValueError, AttributeError, LookupError, re.error) as error:
        raise DataError(f"{where}: {name} cannot be verified with {dict(kwargs)}: {error}") from error


def _unknown_type(name: str, registry: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, registry, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(registry))}"
    return f"unknown constraint type {name!r}; {hint}"


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Seeds langdetect and `random`, and puts both back as they were."""
    from langdetect import DetectorFactory

    # lm-eval logs whole responses when langdetect finds no letters in them; IFEval counts these as followed.
    logger = logging.getLogger("lm_eval.tasks.ifeval.instructions")
    before = (random.getstate(), DetectorFactory.seed, logger.disabled)
    DetectorFactory.seed = SEED
    logger.disabled = True
    random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before[0])
        DetectorFactory.seed, logger.disabled = before[1:]


@functools.cache
def _lm_eval_registry() -> Mapping[str, Any]:
    """Returns lm-eval's verifier classes by constraint type, imported without the download lm-eval tries."""
    import nltk

    download = nltk.download
    nltk.download = lambda *_args, **_kwargs: False
    try:
        # Without the data lm-eval also says on standard output that it has downloaded them.
        with contextlib.redirect_stdout(io.StringIO()):
            from lm_eval.tasks.ifeval import instructions_registry
    finally:
        nltk.download = download
    return instructions_registry.INSTRUCTION_DICT


def _ensure_punkt(prompts: Sequence[Verifiable], *, offline: bool) -> None:
    needing = [(p, name) for p in prompts for name in p.instruction_id_list if name in PUNKT_TYPES]
    if not needing or has_punkt():
        return
    if not offline and not is_offline():
        _download_punkt()
        if has_punkt():
            return
    prompt, name = needing[0]
    raise RunError(
        f"{len(needing)} constraints (the first: {prompt.where}, {name}) need NLTK's punkt_tab data, "
        f"which is not here; {PUNKT_CURE}"
    )


def has_punkt() -> bool:
    """Returns whether NLTK finds its Punkt data, which the types in `PUNKT_TYPES` need."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _download_punkt() -> None:
    """Tries once, in a thread, because a name server that does not answer has no time-out of its own."""
    import nltk

    def download() -> None:
        # Whatever goes wrong here ends in the error that names the cure.
        with contextlib.suppress(Exception):
            nltk.download("punkt_tab", quiet=True, print_error_to=io.StringIO())

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_TIMEOUT_S)
