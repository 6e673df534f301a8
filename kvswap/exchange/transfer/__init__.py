"""Transfers: many peers, one fetch; chunks come into the store, whichever peers fail.

`schedule` decides who is asked for what - a pure state machine, driven with given clock values;
`sources` is how a peer is asked, over HTTPS or libp2p; `buffers` bounds the memory in between;
`downloader` runs them; `download` is the whole of it for a use case: leased, listed, transferred, checked.
"""
