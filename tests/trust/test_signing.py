"""Whatever is signed here, others take: no control characters, no texts that are too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import UsageError
from kvswap.core.ids import Cid
from kvswap.core.text import is_printable
from kvswap.trust.audit import Audit, sign_audit
from kvswap.trust.hosting import Offer, Receipt, Tariff, sign_offer, sign_receipt
from kvswap.trust.status_record import make_status_record
from tests.support import key

KEY = key(5)
OWN = str(KEY.peer_id)
NAME = str(Cid.of(b"an artifact"))
ODD = st.text(st.sampled_from("a \u00e9\x1b[]\n\x00\u202e\u200b\ud800"), min_size=1, max_size=300)


def an_audit(**fields: Any) -> Any:
    told = {
        "version": 1, "artifact": bytes(Cid.of(b"an artifact")), "publisher": OWN, "auditor": OWN, "level": 5,
        "tokens": 10, "samples": 1, "seed": bytes(32), "worst": 1, "verdict": "failed", "why": "",
        "environment": ["cpu"], "issued": int(time.time()),
    }  # fmt: skip
    return sign_audit(Audit(**(told | fields)), KEY).audit


def an_offer(**fields: Any) -> Any:
    told = {
        "version": 1, "host": OWN, "model": bytes(32), "label": "a model", "dtype": "float32",
        "tariff": Tariff(1, 1, 1), "issued": 1, "expires": 2,
    }  # fmt: skip
    return sign_offer(Offer(**(told | fields)), KEY).offer


def a_read(**fields: Any) -> Any:
    told = {
        "version": 1, "host": OWN, "number": 1, "previous": bytes(32), "client": "somebody", "document": None,
        "model": bytes(32), "offer": bytes(32), "read": 0, "prefilled": 0, "made": 0, "picodollars": 0, "ended": 1,
    }  # fmt: skip
    return sign_receipt(Receipt(**(told | fields)), KEY).read


@given(ODD)
def test_reasons_that_this_node_words_itself_are_made_fit(why: str) -> None:
    """They hold texts of libraries and of other publishers."""
    head = make_status_record(KEY, 1, int(time.time()), [], {NAME: why}).record
    for signed in (head.reasons[NAME], an_audit(why=why).why):
        assert is_printable(signed) and len(signed) <= 256


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (an_offer, {"label": "a\x1b]0;x\x07"}),
        (an_offer, {"dtype": "a\u202eb"}),
        (a_read, {"client": "a\nb"}),
        (an_audit, {"environment": ["cpu", "a\x00b"]}),
    ],
)
def test_what_others_would_not_show_is_not_signed(make: Callable[..., Any], fields: dict[str, Any]) -> None:
    make()
    with pytest.raises(UsageError, match="control characters"):
        make(**fields)
