"""An agent that reads a document: from a published cache when that is worth it, by itself otherwise.

    kvswap daemon &
    python examples/agent.py examples/documents/python-special-methods.txt "What does __del__ do?"

The agent has its own model in its own process.  It asks the node for the document by content hash,
gets a cache that is bit for bit the publisher's, and goes on from there; with no node, no offer, or
no gain, it prefills.  Either way the answer is the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import kvswap
from kvswap.integrations.transformers import inputs_after, load_model, question_text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("document", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--home", help="home of the node to ask (default: yours)")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    text = arguments.document.read_bytes().decode()  # as it is: the digest is over these bytes

    with kvswap.Client(arguments.home) as node:
        cache, report = node.get_cache(text, model, tokenizer)  # prefilled here where no daemon runs
    print(f"{report.action}: {report.tokens} tokens in {report.seconds:.2f} s ({report.reason})")

    began = time.perf_counter()
    inputs = inputs_after(text, question_text(tokenizer, arguments.question), tokenizer, cache)
    out = model.generate(**inputs, max_new_tokens=arguments.max_tokens, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{answer.strip()}\n({time.perf_counter() - began:.2f} s)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except kvswap.KvswapError as error:
        print(f"{error.message}\n  Hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
