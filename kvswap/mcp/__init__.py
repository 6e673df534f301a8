"""Tools for agent programs: the verbs of a node over the Model Context Protocol (https://modelcontextprotocol.io).

A process of its own, a face like the command line: it calls the daemon as any client does.  What an agent asks for may
be somebody else's wish, written into a page that it read, and a published cache reveals its text; so what a tool may
touch is for the user who started the process to say, and for no argument of a call (`kvswap.mcp.folders`).

The SDK comes with the extra `mcp`; only this package imports it.
"""
