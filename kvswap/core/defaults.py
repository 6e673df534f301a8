"""Numbers that several faces offer unless told otherwise, each with its reason.  What is a bound is in `limits`."""

BLOCK_TOKENS = 256
"""Tokens of a block: shorter ones share more of two documents, longer ones cost less to compute (ADR 3)."""
ANSWER_TOKENS = 64
"""Tokens of an answer to `ask`: a few sentences, some seconds on two cores."""
HOSTED_ANSWER_TOKENS = 256
"""Tokens of a hosted answer whose request names no number: such clients are chats, which are cut off by fewer."""
COMPARED_TOKENS = 256
"""Tokens of the answers that the paper's experiment compares: a difference of one bit shows long before."""
TRAINING_TOKENS = 40_000
"""Tokens of a corpus that the predictive codec is trained on: some two dozen of the documents it cuts."""
HEADROOM_TOKENS = 1024
"""Tokens that may follow a loaded prefix before its cache is copied into larger memory."""
HOSTED_REQUESTS = 64
"""Requests that a host answers at a time."""
WARM_SECONDS = 300.0
"""Pause in which a host makes sure again that its documents are in the engine's cache."""
OPAQUE_DTYPES = frozenset({"q8_0"})
"""Dtypes whose bytes are quantised already: every codec but `raw` loses there (zstd gains 3%)."""
LOOKUP_SECONDS = 0.05
"""Seconds for each thing that `kvswap llama` asks its server before it knows whether anything is kept of a prompt."""
