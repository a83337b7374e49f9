"""The plan of a run as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table


def plan_table(plan: dict[str, Any]) -> Table:
    """Returns the plan as a table."""
    table = Table(show_header=False, title=f"plan of {plan['name']}", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    data, length, inputs = plan["data"], plan["sample_length"], plan["inputs_per_sample"]
    table.add_row("model", f"{plan['model']}, {plan['trains']}, {plan['precision']}, {plan['engine']}")
    if plan["emulates_bf16"]:
        table.add_row("precision", "bf16 is emulated here: train.precision=fp32 is faster")
    table.add_row(
        "dataset",
        f"{plan['dataset']}: {data['rows']:,} rows, {data['samples']:,} samples, {data['cut']:,} cut",
    )
    if "chunks" in data:
        chunks = data["chunks"]
        table.add_row("chunks", f"{chunks['rows']:,} of the rows joined to {chunks['samples']:,} samples")
    if plan["cache"]["folder"]:
        table.add_row("tokens in", f"{plan['cache']['folder']} ({'found there' if plan['cache']['used'] else 'new'})")
    if plan.get("new_token"):
        table.add_row("vocabulary", plan["new_token"])
    for reason, dropped in data["dropped"].items():
        table.add_row("dropped", f"{dropped['samples']:,} x {reason} (first: row {dropped['first']})")
    table.add_row(
        "attention",
        f"{plan['mode']}, weighting {plan['weighting']}, positions {plan['positions']}, kernel {plan['kernel']}",
    )
    table.add_row("inputs per sample", f"{inputs['mean']} on average, {inputs['max']} at most")
    table.add_row(
        "tokens per sample", f"median {length['median']:,}, 99 % {length['p99']:,}, longest {length['max']:,}"
    )
    table.add_row("trained on", plan["trained_on"])
    table.add_row("tokens", f"{plan['tokens']:,}, of them trained {plan['trained_tokens']:,}")
    table.add_row(
        "steps",
        f"{plan['steps']:,} of {plan['samples_per_step']} samples: "
        f"{plan['devices']} device(s) x {plan['accumulation']} micro-batches; {plan['warmup_steps']:,} of warm-up",
    )
    if plan["row_capacity"] is not None:
        table.add_row(
            "packing",
            f"{plan['packed_rows']:,} rows of {plan['row_capacity']:,} tokens, {plan['packing_waste']:.1%} left empty; "
            f"the longest row has {plan['longest_row']:,}",
        )
    if plan["devices"] > 1:
        table.add_row("balance", f"the longest of the rows side by side is {plan['device_balance']:.2f} x the mean")
    for what, text in (*_memory(plan), *_disk(plan), *_time(plan)):
        table.add_row(what, text)
    return table


def _memory(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the memory of each device, by component."""
    memory = plan.get("memory")
    if memory is None:
        return
    if "unknown" in memory:
        yield "memory", f"not known: {memory['unknown']}"
        return
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in memory["components"].items() if size)
    verdict = {None: "", True: ": it fits", False: ": it does NOT fit"}[memory["fits"]]
    limit = "" if memory["limit"] is None else f" of the {_gib(memory['limit'])} of {memory['device']}{verdict}"
    yield "memory a device", f"{_gib(memory['total'])}{limit} ({parts})"
    if memory["host"]:
        yield "memory of the host", ", ".join(f"{name} {_gib(size)}" for name, size in memory["host"].items())
    row = memory["row"]
    yield (
        "heaviest row",
        f"{row['tokens']:,} tokens, {row['trained_tokens']:,} of them trained, in step {row['step']:,}; "
        f"the first row that runs has {plan['first_row']:,}",
    )


def _disk(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the room that checkpoints and the trained model take."""
    disk = plan.get("disk")
    if disk is None:
        return
    verdict = "" if disk["fits"] else ": NOT enough"
    yield (
        "disk",
        f"{_gib(disk['most'])} at most, {_gib(disk['free'])} free{verdict} "
        f"({disk['kept']} checkpoints of {_gib(disk['checkpoint'])}, a final model of {_gib(disk['final'])})",
    )


def _time(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields how long it will take, or how to learn it."""
    time, measured = plan.get("time"), plan.get("measured")
    if time is None:
        yield "time", "not known here: --plan --measure runs one row and says"
        return
    yield "time", f"{_hours(time['hours'])} at {time['tokens_per_s']:,.0f} tokens/s ({time['from']})"
    if measured is not None:
        yield (
            "measured",
            f"{measured['tokens']:,} tokens in {measured['seconds']:.2f} s, forward and backward; at most "
            f"{measured['peak_memory_gib']:.2f} GiB, without optimizer",
        )


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} minutes"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
