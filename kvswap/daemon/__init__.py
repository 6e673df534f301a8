"""The running node: local API, lifecycle, and the model process under supervision.

`run` wires everything and owns signals; `app` maps HTTP to use cases; `guard` decides who may call;
`supervisor` keeps the model process.
"""
