"""The typed mixture file of `misotune prepare mixture`: which sources, how much of each, in which chunks."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from misotune.recipe.checking import Problem, field_problems
from misotune.recipe.schema import NAME_PATTERN, PositiveFloat, PositiveInt, Section, Share, Text, each_once
from misotune.samples import Mode

Texts = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
Name = Annotated[
    str,
    Field(
        pattern=NAME_PATTERN,
        max_length=100,
        json_schema_extra={
            "patternErrorMessage": "a name: a letter or digit, then letters, digits, '.', '_' or '-', at most 100"
        },
    ),
]


class SourceEntry(Section):
    """One source of a mixture, with the options of `misotune prepare`."""

    source: Text
    """A source by name (`crab`, `sharegpt`, …), a data file, or a hub id."""

    domain: Name
    """What its rows are for: `chat`, `code`, `math`, … Sources may share a domain."""

    name: Name | None = None
    """Begins the ids of its rows. Null: the source's own name."""

    data: Text | None = None
    """The file of a source that is given by name."""

    weight: PositiveFloat | None = None
    """Its share of the rows, over the sum of weights: among the sources of its domain, or with `n_mix: 1` among
    all sources. Give it to all of these or to none; without weights, each source counts by its rows."""

    cap: PositiveInt | None = None
    """Rows that may be drawn from it at most, chosen by the seed. Null: all."""

    map: Annotated[dict[Text, Text], Field(json_schema_extra={"examples": [{"instruction": "prompt"}]})] = Field(
        default={}
    )
    """Names of its columns: `{instruction: prompt, output: completion}`."""

    split: Text = "train"
    """The split of a hub data set."""

    revision: Text | None = None
    """Branch, tag or commit of a hub data set; null: the newest."""

    think: Literal["input", "output", "drop"] = "input"
    """Where the thinking of a reasoning trace goes."""

    join: Literal["lines", "bullets", "paragraph", "mixed"] | None = None
    """How constraints are joined to the instruction; null: the source's own way."""

    keep_reverse: bool = False
    """Keep Crab's `_reverse` rows."""

    min_confidence: Share = 0.5
    """Splits into instruction and constraints that are less sure fall back to one input."""

    constraints: Literal["as_read", "rules", "backtranslate"] = "as_read"
    """Where a row's constraints come from: the data, `rules` that find them in the instruction, or `backtranslate`,
    which adds some that the response meets."""


class MixtureFile(Section):
    """A mixture of sources: complete in itself."""

    name: Name
    """Name of the mixture: its dataset is `data/NAME`."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of everything that is drawn: rows, their order, system prompts."""

    mode: Mode = "sft"
    """The inputs that a row gets. Chunks (`n_mix` above 1) need `sft`: they are one text."""

    data_dir: Text = "."
    """The folder that files are looked for in."""

    sources: Annotated[tuple[SourceEntry, ...], Field(strict=False, min_length=1)]
    """Where the rows come from."""

    n_mix: PositiveInt | None = None
    """Rows in a chunk, which trains as one causal text. Null: one of each domain. 1: no chunks, and the sources are
    mixed by weight."""

    order: Annotated[Texts, Field(json_schema_extra={"uniqueItems": True}), AfterValidator(each_once)] | None = None
    """The domains as they follow one another in a chunk; null: as the sources do."""

    max_epochs: Annotated[float, Field(ge=1)] = 1.0
    """How often a row may be drawn, on average over its source. 1: no row twice, so that the scarcest domain
    decides the length of the mixture; more: rows of scarce domains are repeated."""

    rows: PositiveInt | None = None
    """Rows of the mixture at most; null: as many as can be drawn."""

    system_prompts: Annotated[dict[Text, Texts], Field(json_schema_extra={"examples": [{"math": ["Think."]}]})] = Field(
        default={}
    )
    """For a domain, system prompts; each of its rows draws one."""

    replace_system_prompts: bool = False
    """Also draw for rows that have a system prompt of their own."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains in order."""
        return self.order or tuple(dict.fromkeys(entry.domain for entry in self.sources))

    @property
    def rows_per_chunk(self) -> int:
        """`n_mix` with null decided."""
        return self.n_mix or len(self.domains)

    @property
    def has_chunks(self) -> bool:
        """Whether rows are joined."""
        return self.rows_per_chunk > 1


@cache
def mixture_json_schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of a mixture file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **MixtureFile.model_json_schema()}


def check_mixture(values: Any) -> MixtureFile | list[Problem]:
    """Returns the mixture that `values` describe, or else all that is wrong with them."""
    try:
        mixture = MixtureFile.model_validate(values)
    except ValidationError as error:
        return field_problems(error, values, mixture_json_schema())
    return list(_conflicts(mixture)) or mixture


def _conflicts(mixture: MixtureFile) -> Iterator[Problem]:
    domains = tuple(dict.fromkeys(entry.domain for entry in mixture.sources))
    if mixture.order is not None:
        unknown = list(_unknown_domains(mixture.order, domains, ("order",)))
        yield from unknown
        missing = [domain for domain in domains if domain not in mixture.order]
        if missing and not unknown:
            yield Problem(("order",), f"leaves out the domain {missing[0]!r}; name each domain of the sources once")
    for domain in mixture.system_prompts:
        yield from _unknown_domains([domain], domains, ("system_prompts", domain))
    if mixture.has_chunks and mixture.mode != "sft":
        message = (
            f"got {mixture.mode!r}; chunks of {mixture.rows_per_chunk} rows are one text and need 'sft'; "
            "or set n_mix: 1"
        )
        yield Problem(("mode",), message)
    yield from _weight_conflicts(mixture)


def _unknown_domains(names: Sequence[str], domains: Sequence[str], path: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        if name not in domains:
            near = get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            yield Problem(path, f"no source has the domain {name!r}; {hint}domains: {', '.join(domains)}")


def _weight_conflicts(mixture: MixtureFile) -> Iterator[Problem]:
    first_of: dict[str, tuple[int, bool]] = {}
    for index, entry in enumerate(mixture.sources):
        pool = entry.domain if mixture.has_chunks else ""
        other, has_weight = first_of.setdefault(pool, (index, entry.weight is not None))
        if has_weight != (entry.weight is not None):
            theirs, ours = ("a weight", "none") if has_weight else ("no weight", "one")
            of = f" of the domain {pool!r}" if pool else ""
            message = f"sources.{other} has {theirs} and this source has {ours}; give one to all sources{of} or to none"
            yield Problem(("sources", index), message)
