"""From a finished run to a plain Hugging Face checkpoint, proved before it gets its name."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from misotune.errors import RunError, UsageError
from misotune.export.adapter import ADAPTER_CONFIG, MergeProof, base_of_adapter, merge_adapter
from misotune.export.card import MARK, model_card
from misotune.export.checkpoint import copy_checkpoint, save_merged, tidy_configuration
from misotune.export.proof import Probe, Proof, end_of_turn_id, prove, read_probe
from misotune.layout import ChatTemplate
from misotune.recipe.loading import load_recipe
from misotune.recipe.schema import Recipe
from misotune.report.against_base import AgainstBase, read_against_base, tasks_of_run
from misotune.runs import RunFolder
from misotune.storage import replace_folder

EXPORTS_ROOT = Path("exports")

Message = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and what was proved of it.

    Attributes:
        run: The run's folder.
        path: The checkpoint's folder.
        base_model: As the recipe names it.
        size_bytes: Of all files together.
        proof: Of the checkpoint, reopened.
        merge: Of the merged adapter; None for a full model.
        against_base: What training changed in the scores, of the tasks on which both models were scored.
    """

    run: Path
    path: Path
    base_model: str
    size_bytes: int
    proof: Proof
    merge: MergeProof | None
    against_base: tuple[AgainstBase, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return {**asdict(self), "run": str(self.run), "path": str(self.path)}


def default_folder(run: RunFolder) -> Path:
    """Returns where a run is exported unless asked otherwise."""
    return EXPORTS_ROOT / run.path.resolve().name


def export_run(
    run: RunFolder, out: Path, *, overwrite: bool = False, on_message: Message | None = None
) -> ExportReport:
    """Writes the run's model as a plain checkpoint, proves it, and only then gives it its name.

    Args:
        run: A finished run.
        out: The checkpoint's folder.
        overwrite: Replace an older export in `out`, once the new one is proved.
        on_message: Called with a sentence at each stage.

    Raises:
        UsageError: `out` is there already, or holds something else than an export.
        RunError: The model cannot be exported, or is not what was trained; `out` is as it was.
    """
    say = on_message or (lambda _: None)
    check_out(out, overwrite=overwrite)
    recipe = load_recipe(run.recipe).recipe
    probe = read_probe(run.probe)
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        proof, merge = _write_and_prove(run, recipe, probe, partial, say)
        card = model_card(out.resolve().name, run, recipe, proof, merge)
        (partial / "README.md").write_text(card, encoding="utf-8")
        size_bytes = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        replace_folder(partial, out)
    except OSError as error:
        raise RunError(f"{out}: the export cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    against_base = tuple(found for task in tasks_of_run(run) if (found := read_against_base(run, task)) is not None)
    return ExportReport(run.path, out, recipe.model.name, size_bytes, proof, merge, against_base)


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


def _write_and_prove(
    run: RunFolder, recipe: Recipe, probe: Probe, folder: Path, say: Message
) -> tuple[Proof, MergeProof | None]:
    template = _read_template(run.final)
    merge: MergeProof | None = None
    if (run.final / ADAPTER_CONFIG).is_file():
        base = base_of_adapter(run.final)
        say(f"merging the adapter into {base}")
        revision = recipe.model.revision if base == recipe.model.name else None
        quantization = recipe.lora.quantization if recipe.lora else "none"
        model, merge = merge_adapter(run.final, revision, probe, quantization=quantization)
        save_merged(model, folder)
        del model  # the fresh process below needs the memory
    else:
        say(f"copying {run.final}")
    copy_checkpoint(run.final, folder)
    tidy_configuration(folder, end_of_turn_id(template))
    say("proving it: a fresh process opens it with transformers alone")
    return prove(folder, probe, template, is_merged=merge is not None), merge


def _read_template(final: Path) -> ChatTemplate:
    from transformers import AutoTokenizer

    try:
        return ChatTemplate(AutoTokenizer.from_pretrained(final))
    except (OSError, ValueError) as error:
        raise RunError(f"{final}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error


def _is_export(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
