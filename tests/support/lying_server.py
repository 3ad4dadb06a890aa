"""A server that sends whatever a test wants: real sockets, real TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path

from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.fleet.http_client import bounded_client


class Liar:
    """Sends `parts` as they are to whoever asks, `pause` seconds apart; notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        make_authority(folder, "test")
        issue_server(folder, folder, ["localhost"])
        self.authority = (folder / "authority.pem").read_bytes()
        self.parts: list[bytes] = []
        self.pause = 0.0
        self.asked: list[bytes] = []
        self.resumed: list[bool] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as sock:
                self.resumed.append(bool(sock.session_reused))
                asked = b""  # all of it: closing upon unread bytes would cut the answer
                while not asked.endswith(b"\r\n\r\nq") and (part := sock.recv(65536)):
                    asked += part
                self.asked.append(asked)
                for part in self.parts:
                    sock.sendall(part)
                    time.sleep(self.pause)

    def close(self) -> None:
        self._socket.close()

    def answer(self) -> bytes:
        with bounded_client(self.authority) as client:
            return client.post(f"https://{self.address}/v1/fleet/x", content=b"q").content
