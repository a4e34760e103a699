"""Ports that stay ours while nobody listens on them: a server that is restarted comes back on its own."""

import itertools
import os
import socket
from typing import Final

HOST: Final = "127.0.0.1"
# Below those that the kernel gives to outgoing connections, of which one could take a port while its server is away.
_FIRST, _LAST = 20_000, 32_000
# Processes that test at the same time begin in different places.
_candidates = itertools.count(os.getpid() * 61 % (_LAST - _FIRST))


def free_port() -> int:
    """A port that nobody has, and that is given out only once."""
    for _ in range(_LAST - _FIRST):
        port = _FIRST + next(_candidates) % (_LAST - _FIRST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
    raise AssertionError("there is no free port")
