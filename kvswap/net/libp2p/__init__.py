"""The libp2p transport: TCP + Noise + Yamux, mDNS, Kademlia, GossipSub.

`bridge` runs trio in one thread beside asyncio, `host` is what lives there, `transport` is the face
that the rest of the node sees.  Nothing outside this package imports libp2p or trio, and this package
is imported only when a node starts.
"""
