"""Giving to peers: what they are answered, how much at once, how fast, and in whose turn.

`fair` shares room and rate among peers, `uploads` hands out chunks under those limits, `swarms`
knows who is fetching what, `answers` is the protocol's other half.
"""
