"""`kvswap plan`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, reference, verb


@click.command("plan", help="Fetch or prefill REF?  Prints seconds, dollars and the reason; transfers nothing.")
@click.argument("ref")
@verb
def plan_command(output: Output, ref: str) -> None:
    name, document = reference(ref)
    plan = output.client.plan(name, text=document)
    rows = [
        (name, f"{option['seconds']:.2f} s", f"${option['dollars']:.6f}")
        for name in ("fetch", "prefill")
        if (option := plan[name])
    ]

    of = f" ({plan['codec']}{'' if plan['exact'] else ', INEXACT'})" if plan.get("codec") else ""

    def text() -> str:
        lines = [f"{plan['action']}{of}: {plan['reason']}", output.table(("option", "seconds", "dollars"), rows)]
        if shared := plan.get("shared_prefix"):
            lines.append(
                f"the first {shared['tokens']} of {shared['of']} tokens are those of {shared['artifact']}: "
                f"{shared['action']} them ({shared['reason']})"
            )
        return "\n".join(lines)

    output.result(plan, text)
