"""Examples of every verb, shown at the end of its help; a test runs each through click's parser."""

from __future__ import annotations

from functools import partial

import click

_ID = "bafkr4ien45"  # of an artifact, cut short
_PEER = "12D3KooWCGgu"  # of a peer or publisher, cut short

# Words of the verb -> command lines, each with what it is for, or without where it says so itself.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "daemon": (
        ("kvswap daemon &", "a node that finds others on the local network"),
        ("kvswap daemon --listen /ip4/0.0.0.0/tcp/4777", "others can reach it from anywhere"),
        ("kvswap daemon --no-p2p --model smollm2-135m", "for this machine alone"),
    ),
    "publish": (
        ("kvswap publish manual.txt", "whoever reaches this node can read it"),
        ("kvswap publish texts/", "all texts of a folder as one document"),
        ("kvswap publish --chat messages.json --tools tools.json", "what a conversation begins with"),
        ("kvswap publish notes.txt --group team", "for the members of a group"),
        ("kvswap publish manual.txt --codec predictive", "smaller, where a predictor was trained"),
    ),
    "advise": (
        ("kvswap advise requests.jsonl", "a request of OpenAI's chat API a line"),
        ("kvswap advise requests.jsonl --out prefixes/", "their texts as files, for kvswap publish"),
    ),
    "push": (
        ("kvswap push manual.txt file:///mnt/share/kv", "a share, a USB disk, the directory of a web server"),
        ("kvswap push manual.txt s3://bucket/kv --endpoint https://s3.example.org", ""),
        ("kvswap push manual.txt", "to every origin that was added with --write"),
    ),
    "find": (
        ("kvswap find sha256:ed56d002", "who has a document, by its SHA-256"),
        ("kvswap find --text manual.txt", "or its longest published prefix"),
        (f"kvswap find {_ID} --json", ""),
    ),
    "fetch": (
        ("kvswap fetch sha256:ed56d002", "where it is worth it"),
        ("kvswap fetch manual.txt --max-bytes 500M", "by a file that is here"),
        (f"kvswap fetch {_ID} --allow-untrusted", "nobody trusted: verified by recomputing"),
    ),
    "ask": (
        ('kvswap ask manual.txt "How do I reset it?"', ""),
        ('kvswap ask --chat messages.json "And then?"', "from the longest published prefix"),
        ('kvswap ask sha256:ed56d002 "Who wrote it?" --max-tokens 16 --tofu', ""),
    ),
    "plan": (
        ("kvswap plan manual.txt", "seconds, dollars and the reason"),
        ("kvswap plan manual.txt --explain --max-dollars 0.01", "with the figures behind it"),
    ),
    "show": ((f"kvswap show {_ID}", ""), (f"kvswap show {_ID} --json", "the whole manifest")),
    "verify": (
        (f"kvswap verify {_ID}", ""),
        ("kvswap verify manual.txt --level 7", "compute all of it again"),
        ("kvswap verify --store", "hash every file on disk"),
    ),
    "withdraw": (('kvswap withdraw manual.txt --why "an error on page 3"', ""),),
    "ls": (("kvswap ls", ""), ("kvswap ls --json", "for scripts")),
    "export": (
        (f"kvswap export {_ID} manual.tar", "for a disk, or a web server"),
        (f"kvswap export {_ID} - | ssh bob kvswap import -", "to another machine, through a pipe"),
    ),
    "import": (("kvswap import manual.tar", ""), ("kvswap import -", "from a pipe")),
    "rm": ((f"kvswap rm {_ID}", "asks first"), (f"kvswap rm {_ID} --dry-run", "only says what would go")),
    "pin": (("kvswap pin manual.txt", ""),),
    "unpin": (("kvswap unpin manual.txt", ""),),
    "gc": (("kvswap gc", "what no artifact needs"), ("kvswap gc --to 5000000000", "until 5 GB are left")),
    "status": (("kvswap status", ""), ("kvswap status --home /srv/kvswap", "of another node")),
    "ui": (("kvswap ui", ""), ("kvswap ui --no-browser", "only print the link, as over SSH")),
    "stop": (("kvswap stop", ""), ("kvswap stop --timeout 10", "")),
    "config": (
        ("kvswap config", ""),
        ("kvswap config quota_bytes", "one setting"),
        ("kvswap config --changed", "only what is not the default"),
    ),
    "logs": (
        ("kvswap logs -n 100 --level warning", ""),
        ("kvswap logs --since 1h", ""),
        ("kvswap logs -f --json", "for programs, as it comes"),
    ),
    "origin add": (
        ("kvswap origin add https://kv.example.org/books", "read there from now on"),
        ("kvswap origin add file:///mnt/share/kv --write", "and push there"),
    ),
    "origin ls": (("kvswap origin ls", ""),),
    "origin rm": (("kvswap origin rm https://kv.example.org/books", ""),),
    "origin test": (("kvswap origin test file:///mnt/share/kv", ""),),
    "peers": (("kvswap peers", ""),),
    "block": ((f"kvswap block {_PEER}", ""),),
    "unblock": ((f"kvswap unblock {_PEER}", ""),),
    "trust ls": (("kvswap trust ls", ""),),
    "trust audits": (("kvswap trust audits", ""), (f"kvswap trust audits {_PEER}", "of one publisher")),
    "trust add": ((f"kvswap trust add {_PEER} --label ada", "kvswap id prints it, on her machine"),),
    "trust rm": ((f"kvswap trust rm {_PEER}", ""),),
    "trust rotate": (("kvswap trust rotate", ""),),
    "llama": (
        ("kvswap llama --model gemma.gguf", "at http://127.0.0.1:8080, as llama-server"),
        ("kvswap llama -m gemma.gguf -c 32768 --port 9000 --quota 50G", "its flags are llama-server's"),
        ("kvswap llama --server http://127.0.0.1:8081 --slot-save-path /dev/shm/slots", "before one that runs"),
    ),
    "host": (
        ("kvswap host --model smollm2-135m --listen 0.0.0.0:8100", "starts a vLLM"),
        ("kvswap host --engine http://127.0.0.1:8000", "in front of one that runs"),
    ),
    "host add": (("kvswap host add manual.txt", ""),),
    "host ls": (("kvswap host ls", ""),),
    "host rm": (("kvswap host rm manual.txt", ""),),
    "host invite": (("kvswap host invite bob --daily-tokens 1000000", "prints a secret"),),
    "host clients": (("kvswap host clients", ""),),
    "host revoke": (("kvswap host revoke bob", ""),),
    "host log": (("kvswap host log --client bob --last 5", ""),),
    "host join": (("kvswap host join invitation.txt", ""),),
    "host known": (("kvswap host known", ""),),
    "host leave": ((f"kvswap host leave {_PEER}", ""),),
    "group new": (("kvswap group new team", ""),),
    "group import": (("kvswap group import team.key", ""), ("kvswap group import - --name team", "")),
    "group export": (("kvswap group export team > team.key", "the key is a secret"),),
    "group ls": (("kvswap group ls", ""),),
    "group rm": (("kvswap group rm team", ""),),
    "id": (("kvswap id", ""),),
    "model ls": (("kvswap model ls", ""),),
    "model pull": (("kvswap model pull smollm2-135m", "from the catalogue"), ("kvswap model pull Qwen/Qwen3-0.6B", "")),
    "model check": (("kvswap model check Qwen/Qwen3-0.6B --dtype float16", "what its cache is made of"),),
    "model rm": (("kvswap model rm smollm2-135m", "asks first"),),
    "codec train": (("kvswap codec train --corpus texts/ --model smollm2-135m", ""),),
    "economics": (
        ("kvswap economics", "the paper's figures"),
        ("kvswap economics --readers 1000 --html report.html", ""),
    ),
    "bench paper": (("kvswap bench paper --quick --html paper.html", ""),),
    "manifest check": (
        ("kvswap manifest check artifact.kvm", ""),
        ("kvswap manifest check artifact.kvm --chunks chunks/", "decode every chunk as well"),
    ),
    "events": (("kvswap events", ""), ("kvswap events -f --json", "")),
    "doctor": (("kvswap doctor", ""),),
    "mcp": (
        ("kvswap mcp", "an agent program starts it, and speaks to it through pipes"),
        ("kvswap mcp --http --allow-publish texts/", "over HTTP; it may publish what lies there"),
    ),
    "completion": (('eval "$(kvswap completion bash)"', "in this shell, from now on"), ("kvswap completion fish", "")),
}


def with_examples(command: click.Command, words: str) -> click.Command:
    """Let the help of a verb, and of the verbs below it, end with their examples."""
    below = command.commands.items() if isinstance(command, click.Group) else ()
    for name, inner in below:
        with_examples(inner, f"{words} {name}")
    lines = EXAMPLES.get(words) or tuple(EXAMPLES[f"{words} {name}"][0] for name, _ in below)
    command.format_epilog = partial(_write, lines)  # type: ignore[method-assign]
    return command


def _write(lines: tuple[tuple[str, str], ...], context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the examples, each on a line of its own however narrow the terminal is: they are to be copied."""
    widest = max(len(line) for line, said in lines if said) if any(said for _, said in lines) else 0
    formatter.write("\nExamples:\n")
    for line, said in lines:
        formatter.write(f"  {line:{widest}}  # {said}\n" if said else f"  {line}\n")
