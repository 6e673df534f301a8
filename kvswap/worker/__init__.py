"""The model process: one model, one job at a time, apart from the node so that neither can hurt the other.

`protocol` is the pipe between the two (msgpack frames, no pickle), `main` the process, `jobs` what it
does.  The node's side is `kvswap.daemon.supervisor`.
"""
