"""Real processes over the network: Flower's SuperLink behind a TLS front, and PCs that talk to it.

On the server
server.py        supervisor: keeps the others alive, lets members in, starts wanted runs
subprocesses.py  its processes
runs.py          runs in the server's folder, as commands, supervisor and coordinator see them
ownership.py     whose files they are, where commands and server run as different users
front.py         TLS 1.3, the fleet's calls, members only, a limit on everything that strangers can
make grow limits.py        those limits; sockets.py: its sockets and certificate admitted.py
whom the list of members lets in superlink.py     Flower's SuperLink on loopback; guard.py: what
reaches it registry.py      members' keys and runs at Flower's control API coordinate.py    the
coordinator of one run as a process; grid.py: its end of a Flower run

On a PC
node.py          one process: asks for messages, calls the installed client app, answers
node_auth.py     Flower's node signatures, by the server's clock
answers.py       what it sends, which does not tell how long the work took
http_client.py   HTTP to a server that is not trusted; proxy.py: through the owner's proxy
trouble.py       why the server is not reached

clients.py       Flower's clients over our own connections
wire.py          messages in one piece or many, one copy of a vector in memory

Nothing of the bundle that a SuperLink hands out is ever fetched or run.
"""

from __future__ import annotations

from fedaipc.extras import need

need("a server or client process", "anyio", "h11", "httpx", "uvicorn")
