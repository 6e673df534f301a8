"""Vectors of version 2: layers of named tensors, states and checkpoints, and what is wrong with such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.core import wire
from tests.support import FULL, SLIDING, make_artifact

Write = Callable[..., None]
Seal = Callable[[Any], bytes]

CONV = LayerSpec("state", (TensorSpec("conv.0", "checkpoint", (6, 3)),))
DELTA = LayerSpec(
    "state",
    (
        TensorSpec("conv.0", "checkpoint", (12, 4)),
        TensorSpec("recurrent.0", "checkpoint", (2, 4, 4), "float32"),
    ),
)
BESIDE = LayerSpec("full+state", (*FULL.tensors, *DELTA.tensors))
INDEXED = LayerSpec(
    "full",
    (TensorSpec("k", "token", (1, 12)), TensorSpec("v", "token", (1, 4)), TensorSpec("index", "token", (8,))),
)
LATENT = LayerSpec("latent", (TensorSpec("latent", "token", (12,)), TensorSpec("rope_key", "token", (4,))))


def named_vectors(write: Write, sealed: Seal, now: int) -> None:
    """Write the vectors, valid and hostile."""

    def good(name: str, why: str, **options: Any) -> None:
        made = make_artifact(now=now, **options)
        write("valid", name, made.statement.envelope, 0, why, made.chunks)

    good("state", "a state in every block, beside layers of keys and values",
         tokens=21, specs=(CONV, FULL, CONV, SLIDING), checkpoints=(8, 16, 21))  # fmt: skip
    good(
        "state-end", "states at the end alone, in two dtypes", tokens=40, specs=(DELTA, DELTA, FULL), checkpoints=(40,)
    )
    good("state-float32", "states in a float32 cache, whose dtype needs no mention", tokens=9, dtype="float32",
         specs=(CONV, FULL), checkpoints=(9,))  # fmt: skip
    good("beside", "keys, values and states in one layer", tokens=24, specs=(BESIDE, FULL), checkpoints=(16, 24))
    good("index", "a third tensor beside latent and rotary key", tokens=21, specs=(INDEXED, INDEXED))
    good("latent", "a latent layer by its own names", tokens=21, specs=(LATENT,))
    good("cut", "a checkpoint that ends no whole block", tokens=21, specs=(CONV, FULL), checkpoints=(11, 16, 21))
    good("cut-sliding", "a cut without states: a window is held at it", tokens=21, specs=(FULL, SLIDING),
         checkpoints=(11, 21))  # fmt: skip
    _invalid(write, sealed, now)


def _invalid(write: Write, sealed: Seal, now: int) -> None:
    made = make_artifact(now=now, tokens=24, specs=(DELTA, FULL, BESIDE), checkpoints=(8, 24))
    payload = made.manifest.encode()

    def lie(name: str, why: str, change: Callable[[Any], Any]) -> None:
        tree = wire.parse(payload)
        change(tree)
        write("hostile", f"named-{name}", sealed(tree), 7, why)

    def layer(number: int, **fields: Any) -> Callable[[Any], Any]:
        return lambda tree: tree["layout"]["layers"][number].update(fields)

    def tensor(number: int, place: int, **fields: Any) -> Callable[[Any], Any]:
        return lambda tree: tree["layout"]["layers"][number]["tensors"][place].update(fields)

    def checkpoints(*points: int) -> Callable[[Any], Any]:
        return lambda tree: tree["layout"].update(checkpoints=list(points))

    lie("version-1", "named tensors under version 1", lambda tree: tree.update(version=1))
    lie("version-3", "a version that is not there yet", lambda tree: tree.update(version=3))
    lie("axes", "the axes of version 1", lambda tree: tree["layout"].update(axes="layer,kv,head,token,dim"))
    lie("kind", "a kind of layer that is not there", layer(0, kind="retention"))
    lie("kind-full", "a layer of states that calls itself full", layer(0, kind="full"))
    lie("kind-state", "keys and values in a layer that calls itself a state", layer(1, kind="state"))
    lie("window", "a window of a layer that does not slide", layer(1, window=4))
    lie("tensors-none", "a layer without tensors", layer(1, tensors=[]))
    lie("tensors-many", "a layer of 17 tensors", layer(1, tensors=[_told(f"t{i}", [2, 8]) for i in range(17)]))
    lie("name-twice", "two tensors of one name", tensor(1, 1, name="k"))
    lie("name-path", "a name that is a path", tensor(1, 0, name="../k"))
    lie("name-long", "a name of 33 characters", tensor(1, 0, name="k" * 33))
    lie("per", "a tensor per layer", tensor(1, 0, per="layer"))
    lie("shape-none", "a tensor of no axes", tensor(0, 0, shape=[]))
    lie("shape-four", "a state of four axes", tensor(0, 0, shape=[2, 2, 2, 2]))
    lie("shape-three", "three axes beside that of the tokens", tensor(1, 0, shape=[2, 2, 8]))
    lie("shape-zero", "an axis of no length", tensor(0, 0, shape=[12, 0]))
    lie("shape-negative", "an axis of negative length", tensor(0, 0, shape=[-12, 4]))
    lie("shape-huge", "an axis over the cap", tensor(0, 0, shape=[1 << 17, 4]))
    lie("shape-product", "a state of 16 GiB by allowed axes", tensor(0, 1, shape=[1 << 16, 1 << 16, 1]))
    lie("shape-other", "a state of another shape than its chunks", tensor(0, 0, shape=[12, 3]))
    lie("shape-float", "an axis that is no whole number", tensor(0, 0, shape=[12.0, 4]))
    lie("dtype", "a dtype that is not there", tensor(0, 1, dtype="float64"))
    lie("dtype-same", "a dtype that is the layout's and mentioned all the same", tensor(0, 0, dtype="bfloat16"))
    lie("dtype-other", "another dtype than that of the chunks", tensor(0, 1, dtype="float16"))
    lie("group-none", "no groups", lambda tree: tree["layout"].update(groups=[]))
    lie("group-empty", "a group without layers", lambda tree: tree["layout"]["groups"][0].update(layers=[]))
    lie("group-nothing", "a group without tensors", lambda tree: tree["layout"]["groups"][0].update(tensors=[]))
    lie(
        "group-layer",
        "a group of a layer that is not there",
        lambda tree: tree["layout"]["groups"][0].update(layers=[9]),
    )
    lie("group-tensor", "a group of a tensor that is not there",
        lambda tree: tree["layout"]["groups"][0].update(tensors=["conv.9"]))  # fmt: skip
    lie("group-mixed", "a group of two dtypes",
        lambda tree: tree["layout"]["groups"][0].update(tensors=["conv.0", "recurrent.0"]))  # fmt: skip
    lie("group-order", "a group that names its tensors in another order",
        lambda tree: tree["layout"]["groups"][2].update(tensors=["v", "k"]))  # fmt: skip
    lie("group-twice", "a group twice", lambda tree: tree["layout"]["groups"].append(tree["layout"]["groups"][0]))
    lie("group-many", "100,000 groups",
        lambda tree: tree["layout"].update(groups=tree["layout"]["groups"][:1] * 100_000))  # fmt: skip
    lie("group-kinds", "layers of two kinds in one group",
        lambda tree: tree["layout"]["groups"][2].update(layers=[1, 2]))  # fmt: skip
    lie("checkpoint-none", "states without a checkpoint", checkpoints())
    lie("checkpoint-end", "the end is no checkpoint", checkpoints(8, 16))
    lie("checkpoint-order", "checkpoints in no order", checkpoints(24, 8))
    lie("checkpoint-twice", "a checkpoint twice", checkpoints(8, 8, 24))
    lie("checkpoint-beyond", "a checkpoint beyond the end", checkpoints(8, 24, 32))
    lie("checkpoint-zero", "a checkpoint before the first token", checkpoints(0, 24))
    lie("checkpoint-more", "a checkpoint without its chunks", checkpoints(8, 16, 24))
    lie("checkpoint-less", "chunks of states at no checkpoint", checkpoints(24))
    lie("checkpoint-cut", "a cut that the chunks know nothing of", checkpoints(8, 11, 24))
    lie("checkpoint-many", "checkpoints over the cap", checkpoints(*range(1, 70_000)))
    lie("state-lossy", "a state in a lossy codec", lambda tree: tree["chunks"][0].update(codec="int8"))
    lie("digests", "one digest of two tensors", lambda tree: tree["tensors"][1].pop())
    lie("digests-v1", "digests as version 1 writes them",
        lambda tree: tree["tensors"].__setitem__(1, {"k": bytes(32), "v": bytes(32)}))  # fmt: skip
    lie("chain-cut", "a chain that is not of these blocks", lambda tree: tree["prefix"]["chain"].pop())
    plain = make_artifact(now=now, tokens=24, specs=(INDEXED, FULL))
    tree = wire.parse(plain.manifest.encode())
    tree["layout"]["checkpoints"] = [24, 23]
    write("hostile", "named-unordered", sealed(tree), 7, "cuts in no order, where there are no states")


def _told(name: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "per": "token", "shape": shape, "dtype": None}
