"""`kvswap host`: answer others from hosted documents; `kvswap host join` and what follows: ask those who do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvswap.cli.completing import ModelType, PeerType, ReferenceType
from kvswap.cli.objective import Finite
from kvswap.cli.output import Output, naming, read_document, reference, secret_of, verb
from kvswap.core.defaults import HOSTED_REQUESTS, WARM_SECONDS
from kvswap.core.directories import home_directory, models_directory
from kvswap.core.settings import Settings

if TYPE_CHECKING:
    from kvswap.host.usage_log import UsageLog


def _home(output: Output) -> Path:
    return home_directory(output.home)


def _usage_log(output: Output) -> UsageLog:
    from kvswap.host.run import usage_log_of

    return usage_log_of(_home(output))


@click.group("host", invoke_without_command=True, help="Answer questions about hosted documents; or ask who does.")
@click.option(
    "--model", default="smollm2-135m", type=ModelType(), show_default=True, help="Name or directory of the model."
)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option("--engine", metavar="URL", help="Front this vLLM server (default: start one).")
@click.option("--engine-key", envvar="KVSWAP_ENGINE_KEY", default="", help="Its --api-key.")
@click.option("--engine-arg", "engine_arguments", multiple=True, metavar="ARG", help="For the vLLM that is started.")
@click.option("--listen", default="127.0.0.1:8100", show_default=True, help="Address and port; HTTPS beyond loopback.")
@click.option("--url", help="Under which clients reach it (default: the address listened on).")
@click.option("--plain", is_flag=True, help="HTTP beyond loopback too: behind something that does TLS.")
@click.option("--read-price", type=Finite(0, 1e6), default=0.0, help="Dollars a million tokens of the cache.")
@click.option("--prefill-price", type=Finite(0, 1e6), default=0.0, help="... that had to be computed.")
@click.option("--make-price", type=Finite(0, 1e6), default=0.0, help="... of answers.")
@click.option(
    "--concurrent", type=click.IntRange(1, 4096), default=HOSTED_REQUESTS, show_default=True, help="Requests at a time."
)
@click.option(
    "--warm-seconds", type=Finite(1, 1e9), default=WARM_SECONDS, show_default=True, help="Between looks at a document."
)
@verb
def host_command(output: Output, read_price: float, prefill_price: float, make_price: float, **flags: Any) -> None:
    """Run a host in this process, unless one of the verbs below was given."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    from kvswap.api.hosting import HostReady
    from kvswap.host.run import HostOptions, main
    from kvswap.model import catalogue
    from kvswap.trust.hosting import Tariff

    flags["model"] = catalogue.typed(flags["model"], models_directory())
    tariff = Tariff.of_dollars(read_price, prefill_price, make_price)
    settings = Settings.load(output.home)
    options = HostOptions(home=settings.home, block_tokens=settings.block_tokens, tariff=tariff, **flags)

    def ready(info: HostReady) -> None:
        shown = f"kvswap host is ready at {info.url} (home {options.home})\n  host {info.host}, {info.model}"
        output.result(info, shown)
        output.note("kvswap host add FILE      offer a document")
        output.note("kvswap host invite NAME   let somebody ask")

    main(options, ready)


# -- of one's own host -------------------------------------------------------------------------------


@host_command.command("add", help="Let clients ask about FILE: its cache is fetched or published, and pinned.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@verb
def add(output: Output, file: Path) -> None:
    """Offer a document to clients: make its cache local or publish it, and pin it."""
    from kvswap.api.hosting import HostingResult
    from kvswap.host.documents import add as add_document

    text = read_document(file).decode()
    document, published = add_document(output.client, _usage_log(output), text, file.name)
    done = HostingResult(document=document.document, artifact=document.artifact, published=published)
    output.result(done, f"{document.document}  {file.name}")


@host_command.command("ls", help="List the documents that clients can ask about.")
@verb
def ls(output: Output) -> None:
    """List the documents that clients can ask about."""
    from kvswap.api.hosting import HostedResult, HostedRow

    usage_log = _usage_log(output)
    found = [
        HostedRow(document=d.document, name=d.name, artifact=d.artifact)
        for d in map(usage_log.document, usage_log.references())
    ]
    rows = [(d.document, d.name, d.artifact) for d in found]
    output.result(HostedResult(documents=found), lambda: output.table(("DOCUMENT", "NAME", "ARTIFACT"), rows))


@host_command.command("rm", help="No more questions about REF; its cache is no longer pinned.")
@click.argument("ref", type=ReferenceType())
@verb
def rm(output: Output, ref: str) -> None:
    """Take a document back from clients."""
    from kvswap.api.hosting import UnhostingResult
    from kvswap.host.documents import remove

    name, _ = reference(ref)
    remove(output.client, _usage_log(output), name)
    output.result(UnhostingResult(document=name, removed=True), f"{name} is not hosted any more")


@host_command.command("invite", help="Let a client called NAME ask.  Prints its invitation, which is a secret, once.")
@click.argument("name")
@click.option("--daily-tokens", type=click.IntRange(min=0), default=0, help="Read and made, a day (0: no bound).")
@click.option("--concurrent", type=click.IntRange(min=0), default=0, help="Requests at a time (0: no bound).")
@verb
def invite(output: Output, name: str, daily_tokens: int, concurrent: int) -> None:
    """Print an invitation for a client: a secret, shown once."""
    from kvswap.api.hosting import InvitationResult
    from kvswap.host.run import host_key, written_url
    from kvswap.net.host_connection import Invitation

    url, peer = written_url(_home(output)), str(host_key(_home(output)).peer_id)
    token = _usage_log(output).invite(name, daily_tokens, concurrent)
    invitation = Invitation(url, peer, token).to_text()
    done = InvitationResult(client=name, url=url, host=peer, token=token, invitation=invitation)
    output.result(done, invitation)
    flag = " --plain" if url.startswith("http:") else ""
    output.note(
        f"kvswap host join{flag}   takes it, on the client's machine; for other programs, the token is in --json"
    )


@host_command.command("clients", help="List who was invited, and what they used today.")
@verb
def clients(output: Output) -> None:
    """List the clients, and what each used today."""
    from kvswap.api.hosting import ClientRow, ClientsResult
    from kvswap.host.usage_log import today

    usage_log = _usage_log(output)
    found = [
        ClientRow(
            name=c.name,
            id=c.id,
            daily_tokens=c.daily_tokens,
            concurrent=c.concurrent,
            used=usage_log.used(c.id, today()),
        )
        for c in usage_log.clients()
    ]
    rows = [(c.name, c.used, c.daily_tokens or "-", c.concurrent or "-") for c in found]
    output.result(ClientsResult(clients=found), lambda: output.table(("CLIENT", "TODAY", "A DAY", "AT A TIME"), rows))


@host_command.command("revoke", help="The client NAME may ask no more.")
@click.argument("name")
@verb
def revoke(output: Output, name: str) -> None:
    """Revoke the invitation of a client."""
    from kvswap.api.hosting import RevokeResult

    _usage_log(output).revoke(name)
    output.result(RevokeResult(client=name, revoked=True), f"{name} may ask no more")


@host_command.command("log", help="List the signed records of reads, all of them checked.")
@click.option("--client", help="Of this client alone.")
@click.option("--last", type=click.IntRange(1, 1000), default=20, show_default=True)
@verb
def log(output: Output, client: str | None, last: int) -> None:
    """Check the records of hosted requests, and list the last ones."""
    from kvswap.api.hosting import ReceiptRow, ReceiptsResult

    usage_log = _usage_log(output)
    count = usage_log.check()
    receipts = [signed.read for signed in usage_log.last_receipts(client, last)]
    found = [ReceiptRow.from_json(r.to_json() | {"name": usage_log.name_of(r.client)}) for r in receipts]
    rows = [
        (
            r.number,
            r.name,
            (r.document or "").removeprefix("sha256:")[:12] or "-",
            r.read,
            r.prefilled,
            r.made,
            f"${r.picodollars / 1e12:.9f}",
        )
        for r in found
    ]
    headers = ("NUMBER", "CLIENT", "DOCUMENT", "READ", "PREFILLED", "MADE", "DOLLARS")
    output.result(ReceiptsResult(records=count, receipts=found), lambda: output.table(headers, rows))
    output.note(f"{count} records: every signature, the chain and every price are right")


# -- of others ---------------------------------------------------------------------------------------


@host_command.command("join", help="Accept the invitation in FILE (default: standard input).")
@click.argument("file", default="-")
@click.option("--plain", is_flag=True, help="Also over http: token and questions can be read on the way.")
@verb
def join(output: Output, file: str, plain: bool) -> None:
    """Accept an invitation, from a file or standard input."""
    invitation = secret_of(file, "an invitation", "kvswap host invite NAME, on the host")
    with naming(file):
        done = output.client.host_join(invitation, plain=plain)
    output.result(done, f"joined {done.peer} at {done.url}")
    output.note(f'kvswap ask REF "QUESTION" --host {done.peer}   or --host auto, which asks where that is best')


@host_command.command("known", help="List the hosts that invited this node, and what they ask for.")
@verb
def known(output: Output) -> None:
    """List the hosts that invited this node, with their prices."""
    from kvswap.api.hosts import HostsResult

    found = output.client.hosts()
    rows = [
        (h.peer, h.model or "", *(f"${p:g}" for p in (h.tariff.read, h.tariff.prefill, h.tariff.make)), "")
        if h.tariff is not None
        else (h.peer, "", "", "", "", h.problem)
        for h in found
    ]  # fmt: skip
    headers = ("HOST", "MODEL", "READ", "PREFILL", "MAKE", "")
    output.result(HostsResult(hosts=found), lambda: output.table(headers, rows))


@host_command.command("leave", help="Forget the host PEER.")
@click.argument("peer", type=PeerType(kinds=("hosts",)))
@verb
def leave(output: Output, peer: str) -> None:
    """Forget a host."""
    output.result(output.client.host_leave(peer), f"left {peer}")
