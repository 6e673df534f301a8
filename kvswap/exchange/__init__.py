"""The use cases: publish, find, fetch, serve, answer.  The only package where the others meet.

`node.Node` holds the parts; each use case is a module with one verb that takes a node.  Nothing here
renders, and nothing here knows HTTP.
"""

from kvswap.exchange.model_port import ModelPort
from kvswap.exchange.node.events import EventLog
from kvswap.exchange.node.node import Node

__all__ = ["EventLog", "ModelPort", "Node"]
