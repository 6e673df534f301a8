"""The page of models, `docs/models.md`, which is made from the table of them."""

from __future__ import annotations

from textwrap import wrap

from kvswap.model.checking import drawn_of, of_digest
from kvswap.model.families import DTYPES, FAMILIES, WAYS
from kvswap.model.named import NAMED


def page() -> str:
    """Return `docs/models.md`: every model type of the table, by the names that people know."""
    taken = [f for f in FAMILIES.values() if not f.refused]
    lines = [
        "# Models",
        "",
        "<!-- made by `python -m kvswap.model.page > docs/models.md` -->",
        "",
        "`kvswap model check DIRECTORY` says of a model on this machine what its cache is made of, what it weighs,",
        "and what works with it, from its `config.json` alone. The table has the model types that are tested, each",
        "with a tiny random model, bit for bit. Other decoder-only models with full or sliding attention usually",
        "work too; what does not is refused by name before any work begins.",
        "",
        *wrap(
            f"That is a matrix of {len(taken)} model types, {len(DTYPES)} dtypes and {len(WAYS)} ways, "
            f"{len(taken) * len(DTYPES) * len(WAYS)} cells: {', '.join(WAYS)}. "
            "A test runs each of them; none may be skipped.",
            120,
        ),
        "",
        "## The models that are used most",
        "",
        "| model | `model_type` | exchanged |",
        "|---|---|---|",
        *(
            f"| {name} | `{kind}` | {(FAMILIES[kind].refused and 'no: ' + FAMILIES[kind].refused) or 'yes'} |"
            for name, kind in NAMED.items()
        ),
        "",
        "## All that are tested",
        "",
        *wrap(
            "*Verified*: V5 draws single positions or intervals, and with the document's digest alone, without its "
            "text, the tokens are read back from layer 0 where it tells them. Both depend on the layers: the columns "
            "are of the tested models, `kvswap model check` says it of one's own. V3, V6 and V7 work for each, but "
            "that a model of states alone has nothing for V3 to look at, and one of sliding layers alone nothing that "
            "a fingerprint (V6) would hold of a longer text. In its cell an honest artifact passes each of V2 to V7, "
            "and the signed cache of another text none ([what each level finds](security.md)).",
            120,
        ),
        "",
        "| models | `model_type` | V5 | by digest alone |",
        "|---|---|---|---|",
        *(f"| {f.names} | `{f.model_type}` | {drawn_of(f.model_type)} | {of_digest(f.model_type)} |" for f in taken),
        "",
        "## Refused",
        "",
        "| models | `model_type` | why |",
        "|---|---|---|",
        *(f"| {f.names} | `{f.model_type}` | {f.refused} |" for f in FAMILIES.values() if f.refused),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
