"""The libp2p transport: TCP + Noise + Yamux, mDNS, Kademlia, GossipSub.

`bridge` runs trio in one thread beside asyncio, `host` is the libp2p host in that thread, `transport` is the interface
for the rest of the node.  Nothing outside this package imports libp2p or trio, and this package is imported only when a
node starts.
"""
