"""`misotune doctor`: what this machine and installation can do, what is missing, and what mends it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from misotune.doctor.finding import Finding

_STYLES = {"ok": "green", "missing": "yellow", "problem": "bold red", "skipped": "dim"}


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub whether it answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Look at packages, devices, kernels, disk and hub, and name the command that mends what is missing.

    Exit code 0: all that misotune needs is here, though single features may lack something. 1: something that it
    needs is missing or broken.
    """
    from misotune.doctor.examine import examine

    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    with messages.status("looking at packages, devices and the hub"):
        findings = examine(is_offline=offline)
    is_fit = not any(finding.is_fatal for finding in findings)
    if as_json:
        content = {"is_fit": is_fit, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        show_findings(findings, Console(soft_wrap=True, highlight=False))
    if not is_fit:
        raise typer.Exit(1)


def show_findings(findings: Sequence["Finding"], console: Console) -> None:
    """Prints a table on a terminal and a line for each finding elsewhere, then the cures and the result."""
    if console.is_terminal:
        _print_tables(findings, console)
    else:
        for one in findings:
            console.print(f"{one.state:<8} {one.group}, {one.name}: {one.detail}", markup=False)
    curable = [finding for finding in findings if finding.is_bad and (finding.cure or finding.is_required)]
    for one in sorted(curable, key=lambda finding: not finding.is_required):
        weight = "needed for" if one.is_required else "for"
        style = _STYLES["problem" if one.is_required else one.state]
        console.print(f"\n[{style}]{escape(one.name)}[/] ({weight} {escape(one.needed_for)})")
        # Alone on its line, to be copied.
        console.print(f"    {one.cure or one.detail}", markup=False)
    console.print()
    console.print(_result(findings), markup=False, style="bold")


def _print_tables(findings: Sequence["Finding"], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold", ratio=1)
    group = None
    for one in findings:
        if one.group != group:
            group = one.group
            if table.row_count:
                table.add_section()
            table.add_row("", f"[bold]{group}[/]", "")
        table.add_row(f"[{_STYLES[one.state]}]{one.state}[/]", escape(one.name), escape(one.detail))
    console.print(table, soft_wrap=False)


def _result(findings: Sequence["Finding"]) -> str:
    fatal = [finding.name for finding in findings if finding.is_fatal]
    others = sum(finding.is_bad for finding in findings) - len(fatal)
    also = (
        f"; {others} optional {'thing is' if others == 1 else 'things are'} missing or not in order" if others else ""
    )
    if fatal:
        return f"not fit: {', '.join(fatal)} must be mended first{also}"
    return f"fit: all that misotune needs is here{also}"
