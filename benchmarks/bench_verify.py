"""What verification costs, what it finds, and what it takes honest caches for.

    python benchmarks/bench_verify.py [--model NAME|DIR] [--tokens 1024] [--honest 50] [--write DIR]

Honest artifacts are made with one thread and two, in bfloat16 and float32; lies are those of
`tests/attacks/kit.py`, each a whole artifact with a valid signature.  Every artifact goes through the
levels as a reader's node does it.  `--write` keeps verification.md, verification.json and the picture of the
coverage there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import DOCUMENT, machine, once, seconds, text_table
from kvswap.bench.texts import Cutter, read_texts
from kvswap.core.defaults import BLOCK_TOKENS as BLOCK  # noqa: E402
from kvswap.core.directories import models_directory
from kvswap.report import lines
from kvswap.trust.agreement import compare
from kvswap.trust.levels import Level
from kvswap.trust.noise import MARGIN, Noise
from kvswap.trust.sampling import coverage, draw, new_seed
from tests.attacks.kit import ATTACKS, Scene, forge, run_checks
from tests.support import key

STEPS = [Level.STRUCTURE, Level.TOKENS, Level.PROBE, Level.SAMPLES, Level.RECOMPUTE]
SAMPLES = 32
DRAWS = 20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default="smollm2-135m", help="a pulled model's name, or a directory")
    arguments.add_argument("--tokens", type=int, default=1024)
    arguments.add_argument("--honest", type=int, default=50)
    arguments.add_argument("--write", type=Path)
    given = arguments.parse_args()
    directory = Path(given.model) if Path(given.model).is_dir() else models_directory() / given.model
    out: dict[str, Any] = {"machine": machine(), "model": directory.name, "tokens": given.tokens}
    out["cost"] = costs(directory, given.tokens)
    noises: dict[str, Noise] = {}
    out["honest"] = honest(directory, given.tokens, given.honest, noises)
    out["attacks"] = attacks(directory, given.tokens, noises["bfloat16"])
    text = report(out)
    print(text)
    if given.write:
        stem = "verification" if directory.name == "smollm2-135m" else f"verification-{directory.name}"
        given.write.mkdir(parents=True, exist_ok=True)
        (given.write / f"{stem}.json").write_text(json.dumps(out, indent=1) + "\n")
        (given.write / f"{stem}.md").write_text(text)
        (given.write / "coverage.svg").write_text(picture())


def load(directory: Path, dtype: str) -> Any:
    from kvswap.model.load import load_model

    return load_model(directory, directory.name, dtype)


def texts(directory: Path, tokens: int, count: int) -> list[str]:
    """Different beginnings: of several files, each cut at several places."""
    cutter = Cutter(directory)
    sources = [*(text for _, text in read_texts(None)), DOCUMENT.read_text()]
    out: list[str] = []
    start = 0
    while len(out) < count:
        for source in sources:
            if len(source) - start > 12 * tokens and len(out) < count:
                out.append(cutter.cut(source[start:], tokens))
        start += 4_000
        if start > 400_000:
            raise SystemExit(f"only {len(out)} texts of {tokens} tokens")
    return out


def scene_of(loaded: Any, text: str, other: str) -> Scene:
    ids = loaded.tokenize(text)
    return Scene(loaded, text, ids, loaded.tokenize(other)[: len(ids)], BLOCK)


def costs(directory: Path, tokens: int) -> dict[str, Any]:
    """Seconds of V3, V5 and a fingerprint beside one prefill on the schedule and one in a single pass."""
    from kvswap.artifact.fingerprint import fingerprint
    from kvswap.model.prefill import prefill
    from kvswap.model.recompute import at_positions, first_layer
    from tests.attacks.kit import computed

    loaded = load(directory, "bfloat16")
    ids = loaded.tokenize(texts(directory, tokens, 1)[0])
    right = computed(loaded, ids, BLOCK)
    # Both sides of a ratio in turn, so that a machine that slows down slows both.
    rows = []
    for _ in range(3):
        blocks, _ = once(lambda: prefill(loaded, ids, BLOCK))
        whole, _ = once(lambda: prefill(loaded, ids, tokens))
        layer0 = seconds(lambda: first_layer(loaded, ids, BLOCK), 3)
        sampled = {
            k: seconds(lambda k=k: at_positions(loaded, right, tokens, ids, draw(new_seed(), b"a", tokens, k)), 3)
            for k in (8, 32, 64)
        }
        rows.append((blocks, whole, layer0, sampled, seconds(lambda: fingerprint(right), 2)))
    blocks, whole, layer0 = (statistics.median(r[i] for r in rows) for i in range(3))
    return {
        "prefill": blocks,
        "prefill_one_pass": whole,
        "V3": layer0,
        "V5": {str(k): statistics.median(r[3][k] for r in rows) for k in (8, 32, 64)},
        "fingerprint": statistics.median(r[4] for r in rows),
    }


def honest(directory: Path, tokens: int, count: int, noises: dict[str, Noise]) -> dict[str, Any]:
    """False alarms, and how near honest caches come to one."""
    import torch

    from kvswap.worker.noise import measure

    alarms: dict[str, int] = {"V3": 0, "V5": 0, "V6": 0, "V7": 0}
    nearest: dict[str, float] = {"V5": 0.0, "V6": 0.0, "V7": 0.0}
    made = 0
    threads = torch.get_num_threads()
    for dtype in ("bfloat16", "float32"):
        loaded = load(directory, dtype)
        noises[dtype] = measure(loaded, lambda: None)
        for number, text in enumerate(texts(directory, tokens, (count + 1) // 2)):
            if made == count:
                break
            made += 1
            ids = loaded.tokenize(text)
            torch.set_num_threads(1 + number % 2)
            scene = Scene(loaded, text, ids, ids, BLOCK)
            right = scene.right
            torch.set_num_threads(threads)
            artifact = forge(scene, right, signer=key(number))
            seed = bytes([number]) * 32
            steps, mark = run_checks(artifact, scene, STEPS, noises[dtype], seed=seed, samples=SAMPLES)
            with_two = Scene(loaded, text, ids, ids, 128).right  # another publisher's, on another schedule
            agreed = compare(_print(with_two), {"one": mark}, noises[dtype].fingerprints)
            found = {f"V{int(s.level)}": s for s in steps}
            for name in ("V3", "V5", "V7"):
                alarms[name] += found[name].verdict == "failed"
            for name in ("V5", "V7"):
                nearest[name] = max(nearest[name], found[name].figures["worst"])
            alarms["V6"] += agreed.agreeing < len(agreed.scores)
            nearest["V6"] = max(nearest["V6"], agreed.scores["one"])
            print(f"honest {made}/{count}", file=sys.stderr, flush=True)
    return {"artifacts": made, "alarms": alarms, "nearest": nearest, "margin": MARGIN}


def _print(tensors: Any) -> bytes:
    from kvswap.artifact.fingerprint import fingerprint

    return fingerprint(tensors)


def attacks(directory: Path, tokens: int, noise: Noise) -> dict[str, Any]:
    """Every lie on every step; V5 over several draws."""
    loaded = load(directory, "bfloat16")
    one, other = texts(directory, tokens, 2)
    scene = scene_of(loaded, one, other)
    true = _print(scene.right)
    out: dict[str, Any] = {}
    attacks = {name: lambda make=make: forge(scene, make(scene)) for name, make in ATTACKS.items()}
    spelled = [i for ch in one for i in loaded.tokenizer(ch, add_special_tokens=False)["input_ids"]][: len(scene.ids)]
    attacks["another tokenizer"] = lambda: forge(scene, scene.compute(spelled), ids=spelled)
    for name, make in attacks.items():
        print(f"attack: {name}", file=sys.stderr, flush=True)
        made = make()
        steps, mark = run_checks(made, scene, STEPS, noise)
        row: dict[str, Any] = {f"V{int(s.level)}": s.verdict for s in steps}
        row["bitwise"] = steps[-1].figures.get("bitwise")
        row["V7_ratio"] = steps[-1].figures.get("worst")
        agreed = compare(mark, {"honest": true}, noise.fingerprints)
        row["V6"] = "passed" if agreed.agreeing == len(agreed.scores) else "failed"
        row["V6_ratio"] = agreed.scores["honest"]
        row["V5_caught"] = drawn(scene, ATTACKS[name](scene), noise) if row["V5"] != "skipped" else None
        out[name] = row
    out["sampled"] = inside(scene, noise)
    return out


def drawn(scene: Scene, tensors: Any, noise: Noise) -> float:
    """The part of the draws in which V5 finds something."""
    from kvswap.model.recompute import at_positions

    assert noise.samples is not None
    found = 0
    for number in range(DRAWS):
        where = draw(bytes([number]) * 32, b"an artifact", len(scene.ids), SAMPLES)
        errors = at_positions(scene.loaded, tensors, len(scene.ids), scene.ids, where)
        found += not noise.samples.score(errors.numpy()).honest
    return found / DRAWS


def inside(scene: Scene, noise: Noise) -> dict[str, float]:
    """Of positions that were changed, the part that V5 finds wrong when it looks at them."""
    from kvswap.model.recompute import at_positions

    assert noise.samples is not None
    tokens = len(scene.ids)
    places = {
        "swapped span": range(tokens // 4, tokens // 2),
        "swapped history": range(tokens // 2, tokens),
        "foreign context, 64 tokens": range(tokens // 2, tokens // 2 + 64),
        "one poisoned position": [3 * tokens // 5],
    }
    out = {}
    for name, where in places.items():
        errors = at_positions(scene.loaded, ATTACKS[name](scene), tokens, scene.ids, list(where))
        out[name] = len(noise.samples.score(errors.numpy()).wrong) / len(where)
    return out


def report(out: dict[str, Any]) -> str:
    cost, plain = out["cost"], out["honest"]
    parts = [
        f"# What verification costs and finds: {out['model']}, {out['tokens']} tokens\n",
        f"`python benchmarks/bench_verify.py --tokens {out['tokens']} --honest {plain['artifacts']}` on {out['machine']}.\n",
        text_table(
            ["step", "seconds", "of a prefill on the schedule", "of one in a single pass"],
            [
                [name, f"{s:.4f}", f"{s / cost['prefill']:.2%}", f"{s / cost['prefill_one_pass']:.2%}"]
                for name, s in (
                    ("V3, every position", cost["V3"]),
                    *((f"V5, k = {k}", s) for k, s in cost["V5"].items()),
                    ("V6, fingerprint", cost["fingerprint"]),
                    ("prefill", cost["prefill"]),
                )
            ],
        ),
        f"\nHonest artifacts: {plain['artifacts']}, with one and two threads, in bfloat16 and float32.\n",
        text_table(
            ["step", "false alarms", "nearest to one (alarm at 2)"],
            [
                [n, plain["alarms"][n], f"{plain['nearest'][n]:.2f}" if n in plain["nearest"] else ""]
                for n in plain["alarms"]
            ],
        ),
        f"\nLies, each signed by a publisher whose signature is valid (V0 and V1 pass them all).  V5 with k = {SAMPLES}: the "
        f"part of {DRAWS} draws that caught it.  V6 and V7: in multiples of honest noise, alarm at {MARGIN:g}.\n",
        text_table(
            ["attack", "V2", "V3", "V4 (never security)", "V5", "V6", "V7", "same bits"],
            [_row(name, row) for name, row in out["attacks"].items() if name != "sampled"],
        ),
        "\nOf changed positions, found wrong when V5 looks at them: "
        + ", ".join(f"{n} {v:.0%}" for n, v in out["attacks"]["sampled"].items())
        + ".\n",
    ]
    return "\n".join(parts)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    words = {"failed": "caught", "passed": "-", "skipped": "not run"}

    def ratio(step: str) -> str:
        value = row.get(f"{step}_ratio")
        return words[row[step]] + (f" ({value:.1f})" if value is not None and value < 1e5 else "")

    found = "not run" if row["V5_caught"] is None else f"{row['V5_caught']:.0%}"
    bits = {True: "yes", False: "no", None: ""}[row["bitwise"]]
    return [name, words[row["V2"]], words[row["V3"]], words[row["V4"]], found, ratio("V6"), ratio("V7"), bits]


def picture() -> str:
    ks = [2, 4, 8, 16, 32, 64, 128, 256, 512]
    curves = {
        f"{span} token{'s' * (span > 1)}, {readers} reader{'s' * (readers > 1)}": [
            (float(k), max(1e-3, coverage(1024, k, span, readers))) for k in ks
        ]
        for span, readers in ((1, 1), (1, 10), (1, 100), (16, 1), (64, 1))
    }
    return lines(curves, "positions looked at, of 1,024", "chance to see a change")


if __name__ == "__main__":
    main()
