"""A URL that names several hosts, as for a cluster with a primary that may change."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import make_url

from storage import Create, StartupError, database, open_storage
from tests.postgres import set_for_database
from tests.storage.helpers import kill_connections, note, submit


@contextmanager
def silent_host() -> Iterator[str]:
    """Where connections are taken and nobody says anything, as by a machine that hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def refusing_host() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def with_hosts(url: str, *others: str, **options: str) -> str:
    """The URL with other hosts before its own."""
    parsed = make_url(url)
    arguments = database.driver_arguments(url, 1, 1, {})
    hosts = [*others, f"{arguments['host']}:{arguments.get('port') or 5432}"]
    names, ports = zip(*(host.rsplit(":", 1) for host in hosts), strict=True)
    query = {**parsed.query, **options, "host": ",".join(names), "port": ",".join(ports)}
    return parsed.set(host=None, port=None, query=query).render_as_string(hide_password=False)


async def test_the_host_that_serves_is_found_behind_those_that_do_not_and_remembered(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.database.CONNECT_TIMEOUT_S", 3)
    with silent_host() as silent:
        url = with_hosts(database, silent, refusing_host(), target_session_attrs="read-write")
        async with open_storage(url, upgrade=False) as storage:
            loop = asyncio.get_running_loop()
            await submit(storage, Create(task_id="T"))
            begun_at = loop.time()
            for seq in range(2, 5):
                await kill_connections(database)
                assert [task.seq for task in await submit(storage, note())] == [seq]
            # Its third of the time was given to the silent one once.
            assert loop.time() - begun_at < 1


async def test_when_no_host_is_a_primary_the_start_says_so(empty_database: str) -> None:
    await set_for_database(empty_database, "default_transaction_read_only = on")
    url = with_hosts(empty_database, refusing_host(), target_session_attrs="read-write")
    with pytest.raises(StartupError, match="none of the hosts is as target_session_attrs wants it"):
        async with open_storage(url, upgrade=False):
            pass
