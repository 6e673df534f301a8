"""`kvswap plan`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, reference, verb


@click.command("plan", help="Fetch or prefill REF?  Prints seconds, dollars and the reason; transfers nothing.")
@click.argument("ref")
@verb
def plan_command(output: Output, ref: str) -> None:
    plan = output.client.plan(reference(ref)[0])
    rows = [
        (name, f"{option['seconds']:.2f} s", f"${option['dollars']:.6f}")
        for name in ("fetch", "prefill")
        if (option := plan[name])
    ]
    output.result(
        plan, lambda: f"{plan['action']}: {plan['reason']}\n" + output.table(("option", "seconds", "dollars"), rows)
    )
