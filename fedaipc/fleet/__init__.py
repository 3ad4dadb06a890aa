"""Real processes over the network: Flower's SuperLink behind a TLS front, and PCs that talk to it.

On the server
front.py      TLS 1.3, the fleet's calls and nothing else, a limit on all that strangers can grow
superlink.py  Flower's SuperLink on loopback
registry.py   which keys it lets in; Flower runs
grid.py       the coordinator's end of a Flower run

On a PC
node.py       one process: asks for messages, calls the installed client app, answers
node_auth.py  Flower's node signatures, by the server's clock

wire.py       messages in one piece or many, one copy of a vector in memory

Nothing of the bundle that a SuperLink hands out is ever fetched or run.
"""
