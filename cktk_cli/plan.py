"""cktk-plan: which students of a teacher fit a budget, and what they cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from cktk.architectures.plan_config import PlanConfig
from cktk.config.command import Command, Settings
from cktk.plugins import load_plugins
from cktk_cli.run import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-plan",
        "List the students of a teacher that fit a budget, deep and narrow ones first: parameters, operations, speed "
        "on this machine, memory, and the command that trains each.",
        [PlanConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, _plan, argv)


def _plan(settings: Settings) -> None:
    config = settings.section(PlanConfig)
    # transformers takes seconds to import: only after the flags have been looked at.
    from rich.console import Console

    from cktk.assemble.planner import make_plan

    with Console(stderr=True).status("counting parameters") as status:
        plan = make_plan(config, status.update)
    if config.json:
        print(json.dumps(_as_json(plan, config), indent=2))
    else:
        _print_table(plan, config)


def _as_json(plan: Any, config: PlanConfig) -> dict[str, Any]:
    return {
        "length": config.length,
        "beam": config.beam,
        "batch_size": config.batch_size,
        "max_tokens": config.max_tokens,
        "threads": plan.threads,
        "teacher": {"model": config.teacher, **_figures(plan.teacher, plan.teacher_cost, None), "training_bytes": None},
        "students": [
            {"name": found.name, **_figures(found.size, found.cost, found.speed), "command": found.command}
            for found in plan.students
        ],
    }


def _figures(size: Any, cost: Any, speed: Any) -> dict[str, Any]:
    shape = size.shape
    return {
        "width": shape.width,
        **{f"{side}_layers": sizes.layers for side, sizes in shape.sides.items()},
        "ffn_width": shape.sides["encoder"].ffn_width,
        "heads": shape.sides["encoder"].heads,
        "parameters": size.parameters.total,
        "embedding_parameters": size.parameters.embedding,
        "body_parameters": size.parameters.body,
        "compression": cost.compression,
        "flops_per_token": cost.flops,
        "weight_bytes": cost.weight_bytes,
        "training_bytes": cost.training_bytes,
        "tokens_per_second": speed.tokens_per_second if speed else None,
        "latency_ms": speed.latency_ms if speed else None,
    }


def _print_table(plan: Any, config: PlanConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    measured = any(found.speed for found in plan.students)
    speed = ("tokens/s", "ms a sentence") if measured else ()
    table = Table("", "layers", "parameters", "embedding", "body", "ratio", "MFLOPs", *speed, "weights", "training")
    for column in table.columns[2:]:
        column.justify = "right"

    def row(name: str, figures: dict[str, Any]) -> None:
        layers = "+".join(str(figures[key]) for key in ("encoder_layers", "decoder_layers") if key in figures)
        counts = [figures[key] / 1e6 for key in ("parameters", "embedding_parameters", "body_parameters")]
        cells = [f"{count:.1f} M" for count in counts]
        cells += [f"{figures['compression']:.1f}", f"{figures['flops_per_token'] / 1e6:,.1f}"]
        if measured:
            known = figures["tokens_per_second"] is not None
            cells += [f"{figures['tokens_per_second']:,.0f}", f"{figures['latency_ms']:,.0f}"] if known else ["", ""]
        sizes = [figures[key] for key in ("weight_bytes", "training_bytes")]
        cells += ["" if size is None else f"{size / 2**20:,.0f} MiB" for size in sizes]
        table.add_row(name, layers, *cells)

    row("teacher", {**_figures(plan.teacher, plan.teacher_cost, None), "training_bytes": None})
    for found in plan.students:
        row(found.name, _figures(found.size, found.cost, found.speed))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(
        f"MFLOPs per token, forward, {config.length} tokens a side; weights in fp32; training: estimate for "
        f"--max-tokens {config.max_tokens}, teacher included"
    )
    if measured:
        print(
            f"measured with random weights, threads {plan.threads}, beam {config.beam}, {config.length} tokens in and "
            f"out: tokens/s in batches of {config.batch_size}, a sentence alone"
        )
    elif plan.unmeasured and config.measure:
        print(f"not measured: {plan.unmeasured}")
    for found in plan.students:
        print(f"\n# {found.name}\n{found.command}")


if __name__ == "__main__":
    sys.exit(main())
