"""The model process: one model, one job at a time, separate from the node so that neither can crash the other.

`protocol` is the pipe between the two (msgpack frames, no pickle), `__main__` the process, `jobs` its jobs.  The node's
side is `kvswap.daemon.supervisor`.
"""
