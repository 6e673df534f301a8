"""`kvswap llama`: a proxy before an unpatched llama-server that keeps what was prefilled over restarts.

`run` starts both and ends them; `app` answers requests, `forward` passes them through, `launch` starts the server.
"""
