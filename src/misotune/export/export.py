"""From a run, a step, an adapter or a model to a plain Hugging Face checkpoint, proved before it gets its name."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from misotune.errors import RunError, UsageError
from misotune.export.adapter import MergeProof
from misotune.export.card import MARK, model_card
from misotune.export.making import Made, Making, make_checkpoint
from misotune.export.proof import Proof, prove
from misotune.export.push import check_push, push_to_hub
from misotune.export.record import RECORD, Record, weight_entries, with_columns, write_record
from misotune.export.sentences import proof_sentences
from misotune.export.short_card import short_card
from misotune.export.source import Source, source_of_run
from misotune.export.weights import MAX_SHARD_SIZE, named_dtype, size_in_bytes
from misotune.recipe.schema import Recipe
from misotune.report.against_base import AgainstBase, read_against_base, tasks_of_run
from misotune.runs import RunFolder
from misotune.storage import replace_folder

EXPORTS_ROOT = Path("exports")

Message = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    Attributes:
        dtype: Format of the weights: `float32`, `bfloat16` or `float16`; None: that which they have.
        max_shard_size: Largest weight file, as `5GB`; None: a full model's files are copied as they are.
        adapter_only: Export the adapter for peft, not merged.
        push_to_hub: Repository to upload to, OWNER/NAME; None: none.
        hub: In place of huggingface_hub's interface.
    """

    dtype: str | None = None
    max_shard_size: str | None = None
    adapter_only: bool = False
    push_to_hub: str | None = None
    hub: Any = None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and what was proved of it.

    Attributes:
        run: The run's folder, or what was exported in its place.
        path: The checkpoint's folder.
        base_model: As the recipe or the adapter names it; empty when it is not known.
        size_bytes: Of all files together.
        proof: Of the checkpoint, reopened.
        merge: Of the merged adapter; None for a full model.
        num_consolidated: Tensors that are to the bit those of DeepSpeed's files, rounded; None: there were none.
        pushed_to: Where it is on the hub; None: it was not pushed.
        against_base: What training changed in the scores, of the tasks on which both models were scored.
    """

    run: Path
    path: Path
    base_model: str
    size_bytes: int
    proof: Proof
    merge: MergeProof | None
    num_consolidated: int | None = None
    pushed_to: str | None = None
    against_base: tuple[AgainstBase, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return {**asdict(self), "run": str(self.run), "path": str(self.path)}

    def sentences(self) -> list[str]:
        """Returns what was proved, a sentence each."""
        lines = proof_sentences(self.proof, self.merge)
        if self.num_consolidated is not None:
            lines.append(f"{self.num_consolidated} tensors are to the bit those that DeepSpeed's ranks hold, rounded.")
        return lines


def default_folder(run: RunFolder) -> Path:
    """Returns where a run is exported unless asked otherwise."""
    return EXPORTS_ROOT / run.path.resolve().name


def default_folder_of(source: Source) -> Path:
    """Returns where anything is exported unless asked otherwise; a step is named after its run too."""
    name = source.folder.resolve().name
    if source.run is not None:
        run = source.run.path.resolve().name
        name = run if source.is_final else f"{run}-{name}"
    return EXPORTS_ROOT / name


def export_run(
    run: RunFolder,
    out: Path,
    *,
    options: ExportOptions | None = None,
    overwrite: bool = False,
    on_message: Message | None = None,
) -> ExportReport:
    """Exports the end of a run, as `export_source` does."""
    return export_source(source_of_run(run), out, options=options, overwrite=overwrite, on_message=on_message)


def export_source(
    source: Source,
    out: Path,
    *,
    options: ExportOptions | None = None,
    overwrite: bool = False,
    on_message: Message | None = None,
) -> ExportReport:
    """Writes a plain checkpoint, proves it, and only then gives it its name.

    Args:
        source: A finished run, a step's checkpoint, an adapter or a model.
        out: The checkpoint's folder.
        options: How.
        overwrite: Replace an older export in `out`, once the new one is proved.
        on_message: Called with a sentence at each stage.

    Raises:
        UsageError: `out` is there already, or holds something else than an export; options that contradict.
        RunError: The model cannot be exported, or is not what was trained; `out` is as it was.
    """
    say = on_message or (lambda _: None)
    options = options or ExportOptions()
    check_out(out, overwrite=overwrite)
    making = _making(source, options)
    hub = check_push(options.push_to_hub, options.hub) if options.push_to_hub else None
    recipe = source.recipe()
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        made = make_checkpoint(source, recipe, partial, making, say)
        say(f"proving it: a fresh process opens it with transformers {'and peft' if making.adapter_only else 'alone'}")
        opens_in = "auto" if made.merge else made.probe.dtype
        base = made.base if making.adapter_only else None
        proof = prove(partial, made.probe, made.chat, opens_in=opens_in, rounded_to=made.rounded_to, base=base)
        record = Record(
            source.title,
            with_columns(made.probe),
            made.chat,
            opens_in,
            made.rounded_to,
            base,
            weight_entries(partial),
        )
        write_record(partial, record)
        report = ExportReport(
            source.path, out, made.base.name if made.base else "", 0, proof, made.merge, made.num_consolidated
        )
        card = _card(source, recipe, made, report, is_adapter=making.adapter_only)
        (partial / "README.md").write_text(card, encoding="utf-8")
        size_bytes = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        replace_folder(partial, out)
    except OSError as error:
        raise RunError(f"{out}: the export cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report = replace(report, size_bytes=size_bytes, against_base=_against_base(source))
    if options.push_to_hub:
        say(f"pushing it to {options.push_to_hub}")
        report = replace(report, pushed_to=push_to_hub(out, options.push_to_hub, hub))
    return report


def check_out(out: Path, *, overwrite: bool) -> None:
    """Makes sure that an export may be written to `out`: it is free, empty, or an export to be replaced.

    Raises:
        UsageError: It may not.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_export(out):
        raise UsageError(f"{out}: is there already and is no export of misotune; name another folder")
    if not overwrite:
        raise UsageError(f"{out}: is there already; --overwrite replaces it, or name another folder")


def _against_base(source: Source) -> tuple[AgainstBase, ...]:
    """Returns what training changed in the scores of a run's end."""
    if source.run is None or not source.is_final:
        return ()
    found = (read_against_base(source.run, task) for task in tasks_of_run(source.run))
    return tuple(change for change in found if change is not None)


def _making(source: Source, options: ExportOptions) -> Making:
    """Returns the options as they are worked with, after a look at whether they fit together."""
    if options.adapter_only and not source.is_adapter:
        raise UsageError(f"--adapter-only: {source.path} is a full model, not an adapter; leave the option out")
    for name, value in (("--dtype", options.dtype), ("--max-shard-size", options.max_shard_size)):
        if options.adapter_only and value is not None:
            raise UsageError(f"{name} does not go with --adapter-only: an adapter is exported as it was trained")
    return Making(
        named_dtype(options.dtype) if options.dtype else None,
        size_in_bytes(options.max_shard_size or MAX_SHARD_SIZE),
        is_divided=options.max_shard_size is not None,
        adapter_only=options.adapter_only,
    )


def _card(source: Source, recipe: Recipe | None, made: Made, report: ExportReport, *, is_adapter: bool) -> str:
    name = report.path.resolve().name
    if source.run is not None and recipe is not None and source.is_final and not is_adapter:
        return model_card(name, source.run, recipe, report.proof, report.merge)
    text = source.run.recipe.read_text(encoding="utf-8") if source.run else ""
    return short_card(name, source.title, made.base, report.sentences(), is_adapter=is_adapter, recipe=text)


def _is_export(folder: Path) -> bool:
    card = folder / "README.md"
    is_marked = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    return is_marked or (folder / RECORD).is_file()
