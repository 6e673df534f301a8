"""`kvswap plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvswap.cli.completing import ReferenceType
from kvswap.cli.objective import group_option, host_option, lossy_option, plan_options
from kvswap.cli.output import Output, rates, reference, size, verb
from kvswap.cost import Objective

if TYPE_CHECKING:
    from kvswap.api import PlanBasis


@click.command("plan", help="Fetch or prefill REF?  Prints seconds, dollars and the reason; transfers nothing.")
@click.argument("ref", type=ReferenceType())
@lossy_option("Count a cache of a lossy codec as well.")
@click.option("--explain", is_flag=True, help="Also what it was calculated with.")
@host_option()
@group_option()
@plan_options
@verb
def plan_command(
    output: Output,
    ref: str,
    allow_lossy: bool,
    explain: bool,
    host: str | None,
    group: str | None,
    objective: Objective,
) -> None:
    """Print what `ask` would do, with the seconds and dollars of each way."""
    name, document = reference(ref)
    plan = output.client.plan(name, text=document, allow_lossy=allow_lossy, group=group, host=host, objective=objective)
    rows = [
        (name, f"{option.seconds:.2f} s", f"${option.dollars:.6f}")
        for name in ("fetch", "prefill", "hybrid", "host")
        if (option := getattr(plan, name)) is not None
    ]

    of = f" ({plan.codec}{'' if plan.lossless else ', LOSSY'})" if plan.codec else ""

    def text() -> str:
        lines = [f"{plan.action}{of}: {plan.reason}", output.table(("option", "seconds", "dollars"), rows)]
        if held := plan.state_bytes:
            lines.append(f"the state at the end takes {size(held)} of {size(plan.raw_bytes)} before coding")
        if shared := plan.shared_prefix:
            lines.append(
                f"the first {shared.tokens} of {shared.of} tokens are those of {shared.artifact}: "
                f"{shared.action} them ({shared.reason})"
            )
        return "\n".join([*lines, *(_explained(plan.basis) if explain else [])])

    output.result(plan, text)


def _explained(basis: PlanBasis) -> list[str]:
    curve, prices = basis.prefill, basis.prices
    lines = ["", "prefill  not measured on this machine yet"]
    if curve:
        lines = [
            "",
            f"prefill  a block of {curve.block_tokens} tokens takes {curve.a:.3f} s, and "
            f"{1e6 * curve.b:.1f} us more for each token before it",
        ]
    for peer, link in basis.links.items():
        kind = "measured" if link.measured else "assumed"
        lines.append(
            f"link     {peer}: {size(int(link.bytes_per_second))}/s ({kind}), {1e3 * link.latency:.0f} ms"
            + (f", {1e3 * link.start:.0f} ms beside the bytes of a fetch" if link.start is not None else "")
            + (f", give or take {link.spread:.0%}" if link.measured else "")
            + (f", measured {_ago(link.age)}" if link.measured else "")
            + (f", asks ${link.per_gb:g} a GB" if link.per_gb else "")
        )
    if curve and basis.under_way != 1:
        lines.append(f"hybrid   a block takes {basis.under_way:.2f} times as long while chunks arrive")
    lines += [f"codec    {name}: {rates(row)}" for name, row in basis.codecs.items()]
    lines.append(
        f"prices   ${prices.per_gb:g} a GB, ${prices.per_second:g} a second of prefill, "
        + (f"${prices.per_million_tokens:g} a million tokens, " if prices.per_million_tokens else "")
        + f"${prices.value_per_second:g} a second of waiting"
    )
    return lines


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
