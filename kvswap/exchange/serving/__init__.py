"""The serving side: what peers are answered, how much at once, how fast, and in whose turn.

`fair` shares room and rate among peers, `uploads` hands out chunks under those limits, `answers` is the protocol's
other half, `upkeep` stays connected and announces what is here.
"""
