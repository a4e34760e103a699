"""Several processes that hear of each other over NATS; `test_links` has what every way promises."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats.aio.client import Client
from nats.aio.msg import Msg

from storage import Create, Delete, Health, StartupError, Storage, UpdateType, feed_nats, open_storage
from storage.feed_nats import NatsLink, bucket_of
from storage.follower import Follower
from storage.link import SEQ_MAX, unpacked
from tests.nats import NatsServer, free_port
from tests.storage.helpers import note, numbers, spied, submit
from tests.storage.linked import following, never_resync, processes, until, until_all


@asynccontextmanager
async def stranger(server: NatsServer, hear: Callable[[Msg], None] | None = None) -> AsyncIterator[Client]:
    """Somebody else on the server, who hears everything if he wants to."""

    async def on_message(message: Msg) -> None:
        assert hear is not None
        hear(message)

    client = Client()
    await client.connect(server.url)
    try:
        if hear is not None:
            await client.subscribe("spectral-notify.>", cb=on_message)
            await client.flush()
        yield client
    finally:
        await client.close()


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a process began to wait for an answer of the server."""
    begun: list[float] = []
    rtt = Client.rtt

    async def on_rtt(client: Client, within_s: int) -> float:
        begun.append(time.monotonic())
        return await rtt(client, within_s)

    monkeypatch.setattr(Client, "rtt", on_rtt)
    return begun


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a process began to connect to a server."""
    begun: list[float] = []
    begin = feed_nats._Client.begin

    async def on_begin(client: feed_nats._Client) -> None:
        begun.append(time.monotonic())
        await begin(client)

    monkeypatch.setattr(feed_nats._Client, "begin", on_begin)
    return begun


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a server that does not answer noticed soon."""
    monkeypatch.setattr(feed_nats, "CHECK_S", 0.1)
    monkeypatch.setattr(feed_nats, "CHECK_WITHIN_S", 1)


def link_of(storage: Storage) -> NatsLink:
    assert isinstance(storage.link, NatsLink)
    return storage.link


def transport_of(client: Client) -> Any:
    return client._transport._io_writer.transport  # type: ignore[union-attr]


def name_of(number: int) -> str:
    """A name for a file or socket of this process that is not used again, as its number is."""
    return str(Path(f"/proc/self/fd/{number}").readlink())


def opened() -> set[str]:
    """The names of all files and sockets of this process."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        # The one by which the folder is read is gone already.
        with contextlib.suppress(FileNotFoundError):
            found.add(name_of(int(path.name)))
    return found


def heard(storage: Storage) -> int:
    """How many messages a process was given by its present connection."""
    client = link_of(storage)._client
    assert client is not None
    return client.stats["in_msgs"]


async def test_a_server_that_is_killed_and_started_again_is_found_and_nothing_is_missed(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with processes(database, nats.url) as (one, two):
        announced: list[tuple[str, int]] = []
        monkeypatch.setattr(two.follower, "hear", lambda *announcement: announced.append(announcement))
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            for seq in range(2, 8, 2):
                nats.kill()
                await until_all(Health.DEGRADED, one, two)
                await submit(one, note())
                await nats.start()
                assert numbers([await following(updates)]) == [seq]
                await until_all(Health.CONNECTED, one, two)
                await submit(one, note())
                await until(lambda: announced[-1:] == [("T", seq + 1)])  # noqa: B023 - awaited at once
                two.follower.resync()
                assert numbers([await following(updates)]) == [seq + 1]


async def test_without_a_server_a_process_starts_at_once_and_finds_it_when_it_comes(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    nats = NatsServer()
    begun = time.monotonic()
    try:
        async with processes(database, nats.url) as (one, two):
            assert time.monotonic() - begun < 2
            assert (one.feed_health, two.feed_health) == (Health.DEGRADED, Health.DEGRADED)
            await submit(one, Create(task_id="T"))
            async with aclosing(two.watch("T")) as updates:
                await following(updates)
                await nats.start()
                await until_all(Health.CONNECTED, one, two)
                await submit(one, note())
                assert numbers([await following(updates)]) == [2]
            nats.kill()
            await submit(one, note())
            begun = time.monotonic()
        assert time.monotonic() - begun < 2
    finally:
        nats.kill()


async def test_a_server_that_accepts_and_says_nothing_keeps_nobody_from_starting_and_leaving(
    database: str, nats: NatsServer
) -> None:
    nats.freeze()
    begun = time.monotonic()
    async with open_storage(database, upgrade=False, feed_url=nats.url) as storage:
        assert storage.feed_health is Health.DEGRADED
        assert time.monotonic() - begun < 3
        nats.thaw()
        await until_all(Health.CONNECTED, storage)


async def test_a_frozen_server_is_noticed_and_nothing_is_missed(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    soon(monkeypatch)
    async with processes(database, nats.url) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            nats.freeze()
            await submit(one, note())
            await until_all(Health.DEGRADED, one, two)
            nats.thaw()
            assert numbers([await following(updates)]) == [2]
            await until_all(Health.CONNECTED, one, two)


@pytest.mark.parametrize("bytes_max", [20_000, 1_000_000])
async def test_a_frozen_server_that_takes_no_more_bytes_keeps_nobody_from_leaving(
    database: str, nats: NatsServer, bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_nats, "UNSENT_BYTES_MAX", bytes_max)
    async with processes(database, nats.url, 1) as (one,):
        client = link_of(one)._client
        assert client is not None
        transport = transport_of(client)
        socket = name_of(transport.get_extra_info("socket").fileno())
        nats.freeze()
        # More than the kernel takes on behalf of the server.
        while one.feed_health is Health.CONNECTED and transport.get_write_buffer_size() < bytes_max:
            await link_of(one).send({f"{'x' * 200}{number}": 1 for number in range(50)})
            await asyncio.sleep(0)
        client.lose("It was cut.")
        await until(lambda: socket not in opened())
        begun = time.monotonic()
    assert time.monotonic() - begun < 2


async def test_what_one_did_while_it_was_cut_off_the_others_find_when_it_comes_back(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    monkeypatch.setattr("storage.link.RECONNECT_WAITS_S", (1.0,))
    async with processes(database, nats.url) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            await submit(one, note())
            await following(updates)
            # The comparisons that its start and the new subscription have brought about are over: none but that of
            # the hello can find what follows.
            await until(lambda: two.follower.resyncs == 2 and two.follower._comparing is None)
            client = link_of(one)._client
            assert client is not None
            client.lose("It was cut.")
            await until_all(Health.DEGRADED, one)
            await submit(one, note())
            await link_of(one).sent()
            assert one.feed_health is Health.DEGRADED
            assert numbers([await following(updates)]) == [3]
            await until_all(Health.CONNECTED, one, two)


async def test_a_process_does_not_hear_itself(database: str, nats: NatsServer) -> None:
    async with processes(database, nats.url, 1) as (one,):
        await submit(one, Create(task_id="T"))
        async with aclosing(one.watch("T")) as updates:
            await following(updates)
            client = link_of(one)._client
            assert client is not None
            await client.rtt(5)
            await submit(one, note())
            await following(updates)
            await link_of(one).sent()
            await client.rtt(5)
            assert client.stats["out_msgs"] >= 2
            assert heard(one) == 0


async def test_a_process_hears_only_where_it_watches_something(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_nats, "CHECK_S", 0.05)
    task_ids = [f"T{number}" for number in range(200)]
    near = next(task_id for task_id in task_ids[1:] if bucket_of(task_id) != bucket_of("T0"))
    async with processes(database, nats.url) as (one, two):
        await submit(one, *(Create(task_id=task_id) for task_id in task_ids))
        async with aclosing(two.watch("T0")) as updates:
            await following(updates)
            # It was heard of, so all before was, too.
            await submit(one, note("T0"))
            await following(updates)
            before = heard(two)
            await submit(one, *(note(task_id) for task_id in task_ids if bucket_of(task_id) != bucket_of("T0")))
            await link_of(one).sent()
            await submit(one, note("T0"))
            await following(updates)
            assert heard(two) == before + 1
            async with aclosing(two.watch(near)) as others:
                await following(others)
                await submit(one, note(near))
                await following(others)
        # Nobody watches: the subjects are left when there is time, but for the hello.
        client = link_of(two)._client
        assert client is not None
        await until(lambda: len(client._subs) == 1)


async def test_what_was_announced_before_a_subscription_was_in_effect_is_found(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    held, release = asyncio.Event(), asyncio.Event()
    subscribe = feed_nats._subscribe

    async def late(client: Client, subject: str, hear: Any) -> Any:
        if not subject.endswith("hello"):
            held.set()
            await release.wait()
        return await subscribe(client, subject, hear)

    async with processes(database, nats.url) as (one, two):
        await submit(one, Create(task_id="T"))
        # At its start, and when it was connected.
        await until(lambda: two.follower.resyncs == 2)
        monkeypatch.setattr(feed_nats, "_subscribe", late)
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            await held.wait()
            await submit(one, note())
            await link_of(one).sent()
            release.set()
            assert numbers([await following(updates)]) == [2]
        assert two.follower.resyncs == 2


async def test_ten_thousand_watches_in_a_burst_are_subscribed_and_compared_together(
    database: str, nats: NatsServer, round_trips: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with processes(database, nats.url) as (one, two):
        before = len(round_trips)
        with spied(two) as spy, ExitStack() as stack:
            for number in range(10_000):
                stack.enter_context(two.feed.subscribe(f"T{number}"))
                if number % 100 == 0:
                    await asyncio.sleep(0)
            client = link_of(two)._client
            assert client is not None
            await until(lambda: len(client._subs) == 257 and two.follower._comparing is None)
            trips, statements = len(round_trips) - before, len(spy.statements)
            await submit(one, Create(task_id="T7"))
            await until(lambda: two.feed.topic("T7").created_at is not None)  # type: ignore[union-attr]
        assert trips <= 20
        assert statements <= 40


async def test_announcements_under_load_are_a_message_for_each_bucket(database: str, nats: NatsServer) -> None:
    messages: list[Msg] = []
    announced = {f"T{number}": 1 for number in range(10_000)}
    async with processes(database, nats.url, 1) as (one,), stranger(nats, messages.append):
        await link_of(one).send(announced)
        await until(lambda: sum(len(unpacked(message.data)) for message in messages) == len(announced))
    assert len(messages) <= 256
    for message in messages:
        assert {f"spectral-notify.default.{bucket_of(task_id)}" for task_id, _ in unpacked(message.data)} == {
            message.subject
        }


async def test_two_deployments_on_one_server_do_not_hear_each_other(database: str, nats: NatsServer) -> None:
    async with (
        open_storage(database, upgrade=False, feed_url=f"{nats.url}/staging") as other,
        processes(database, nats.url) as (one, two),
    ):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates, aclosing(other.watch("T")) as others:
            await following(updates)
            await following(others)
            await submit(one, note())
            await following(updates)
            # Messages are given out in the order in which they came.
            await link_of(other)._client.rtt(5)  # type: ignore[union-attr]
            assert heard(other) == 0


async def test_strangers_may_say_what_they_like(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    subject = f"spectral-notify.default.{bucket_of('T')}"
    async with processes(database, nats.url) as (one, two), stranger(nats) as other:
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            payloads = ["", "x", "\xff", '[["T",9]]', '[["T",-1]]', '[["T",0]]', '[["other",5]]', "[" * 100_000]
            payloads += [f'[["T",0],["T",{seq}]]' for seq in (0, 5, SEQ_MAX, SEQ_MAX + 1, 2**64 - 1)]
            for payload in payloads:
                await other.publish(subject, payload.encode("latin-1"))
            await other.publish("spectral-notify.default.hello", b"\x00" * 1000)
            await other.publish(subject, b"[]", headers={"a": "b"})
            await other.flush()
            await submit(one, note())
            assert numbers([await following(updates)]) == [2]
            assert (one.feed_health, two.feed_health) == (Health.CONNECTED, Health.CONNECTED)


async def test_a_message_that_ends_the_library_s_reader_is_survived(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    soon(monkeypatch)
    async with processes(database, nats.url) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            first = link_of(two)._client
            reader, writer = await asyncio.open_connection("127.0.0.1", nats.port)
            await reader.readline()
            # Headers without an end, which nats-py 2.16 does not expect; its reader ends, and nothing says so.
            writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n')
            writer.write(b"HPUB spectral-notify.default.%d 8 8\r\nNATS/1.0\r\nPING\r\n" % bucket_of("T"))
            await reader.readline()
            writer.close()
            await submit(one, note())
            assert numbers([await following(updates)]) == [2]
            await until(lambda: link_of(two)._client not in (None, first))


async def test_messages_that_were_dropped_lead_to_a_comparison(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    monkeypatch.setattr(feed_nats, "UNHEARD_MESSAGES_MAX", 1)
    async with processes(database, nats.url) as (one, two), stranger(nats) as other:
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            client = link_of(two)._client
            assert client is not None
            await client.rtt(5)
            resyncs: list[bool] = []
            monkeypatch.setattr(two.follower, "resync", lambda: resyncs.append(True))
            for _ in range(100):
                await other.publish(f"spectral-notify.default.{bucket_of('T')}", b"[]")
            await until(lambda: bool(resyncs))
            assert link_of(two)._client is client


@pytest.mark.parametrize("dead_first", [True, False])
async def test_of_several_servers_one_that_is_there_is_found(
    database: str, nats: NatsServer, dead_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "sample", lambda population, _: list(population))
    urls = [f"nats://127.0.0.1:{free_port()}", nats.url]
    async with processes(database, ",".join(urls if dead_first else urls[::-1])) as (one, two):
        assert (one.feed_health, two.feed_health) == (Health.CONNECTED, Health.CONNECTED)


async def test_in_a_cluster_processes_hear_each_other_and_move_when_a_server_dies(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "sample", lambda population, _: list(population))
    routes = free_port(), free_port()
    servers = [
        NatsServer(
            *("--cluster", f"nats://127.0.0.1:{routes[place]}", "--cluster_name", "c"),
            *("--routes", f"nats://127.0.0.1:{routes[1 - place]}"),
        )
        for place in range(2)
    ]
    urls = [server.url for server in servers]
    try:
        for server in servers:
            await server.start()
        async with (
            open_storage(database, upgrade=False, feed_url=",".join(urls)) as one,
            open_storage(database, upgrade=False, feed_url=",".join(urls[::-1])) as two,
        ):
            await submit(one, Create(task_id="T"))
            async with aclosing(two.watch("T")) as updates:
                await following(updates)
                for _ in range(3):
                    await submit(one, note())
                    await following(updates)
                servers[0].kill()
                await until_all(Health.DEGRADED, one)
                await until_all(Health.CONNECTED, one)
                never_resync(monkeypatch)
                await submit(one, note())
                assert numbers([await following(updates)]) == [5]
    finally:
        for server in servers:
            server.kill()


async def test_a_wrong_password_is_said_once_and_not_shown(
    database: str, attempts: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    nats = NatsServer("--user", "u", "--pass", "p@ss,word")
    right, wrong = (f"nats://u:{word}@127.0.0.1:{nats.port}" for word in ("p%40ss%2Cword", "hunter2"))
    try:
        await nats.start()
        async with open_storage(database, upgrade=False, feed_url=right) as storage:
            assert storage.feed_health is Health.CONNECTED
        with caplog.at_level(logging.DEBUG):
            async with open_storage(database, upgrade=False, feed_url=wrong) as storage:
                await until(lambda: len(attempts) >= 4)
                assert storage.feed_health is Health.DEGRADED
        assert [record.message for record in caplog.records if "NATS" in record.message] == [
            "NATS is not there: nats: 'Authorization Violation'"
        ]
        assert "hunter2" not in caplog.text
    finally:
        nats.kill()


async def test_a_break_and_its_end_are_said_once(
    database: str, nats: NatsServer, attempts: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_storage(database, upgrade=False, feed_url=nats.url) as storage:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            nats.kill()
            await until_all(Health.DEGRADED, storage)
            await until(lambda: len(attempts) >= 4)
            await nats.start()
            await until_all(Health.CONNECTED, storage)
    first, *others = [record.message for record in caplog.records]
    # A server that is killed closes the connection, or resets it.
    assert first.startswith("NATS is not there: ")
    assert others == ["The feed between processes is degraded.", "The feed between processes is connected."]


async def test_tls_is_used_when_asked_for_and_nothing_is_said_without_it(
    database: str, nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certified(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure = NatsServer("--tls", "--tlscert", str(certificate), "--tlskey", str(key))
    try:
        await secure.start()
        url = secure.url.replace("nats:", "tls:")
        async with processes(database, url) as (one, two):
            await submit(one, Create(task_id="T"))
            async with aclosing(two.watch("T")) as updates:
                await following(updates)
                await submit(one, note())
                await following(updates)
        # This one offers none.
        async with open_storage(database, upgrade=False, feed_url=nats.url.replace("nats:", "tls:")) as storage:
            assert storage.feed_health is Health.DEGRADED
        # And this one is not whom its certificate names.
        monkeypatch.delenv("SSL_CERT_FILE")
        async with open_storage(database, upgrade=False, feed_url=url) as storage:
            assert storage.feed_health is Health.DEGRADED
    finally:
        secure.kill()


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.mark.parametrize(
    ("url", "addresses", "subject"),
    [
        ("nats://h", ["nats://h:4222"], "spectral-notify.default.hello"),
        (
            "nats://u:p@h:1,h2,nats://[::1]:3/x",
            ["nats://h:1", "nats://h2:4222", "nats://[::1]:3"],
            "spectral-notify.x.hello",
        ),
        ("tls://token@h/a-b/", ["tls://h:4222"], "spectral-notify.a-b.hello"),
    ],
)
def test_a_url_names_servers_and_a_deployment(url: str, addresses: list[str], subject: str) -> None:
    link = NatsLink(url, Follower.__new__(Follower))
    assert [server.address for server in link._servers] == addresses
    assert link._hello == subject


@pytest.mark.parametrize(
    "url",
    ["nats://", "nats://h/a.b", "nats://h/a,h2/b", "nats://h,http://h", "nats://u:secret@h:99999", "nats://h?x=1"],
)
def test_a_url_that_names_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(StartupError) as refusal:
        NatsLink(url, Follower.__new__(Follower))
    assert "SPECTRAL_FEED_URL" in str(refusal.value)
    assert "secret" not in str(refusal.value)


async def test_some_tasks_can_be_compared_and_no_others(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    never_resync(monkeypatch)
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, *(Create(task_id=task_id) for task_id in ("T", "gone", "other")))
        async with (
            aclosing(two.watch("T")) as updates,
            aclosing(two.watch("gone")) as ends,
            aclosing(two.watch("other")) as others,
        ):
            for watch in (updates, ends, others):
                await following(watch)
            await submit(one, note(), note(), Delete(task_id="gone"), note("other"))
            two.follower.compare([])
            for task_id in ("T", "gone", "nobody watches"):
                two.follower.compare([task_id])
            assert numbers([await following(updates)]) == [2, 3]
            assert (await following(ends)).type is UpdateType.DELETE
            topic = two.feed.topic("other")
            assert topic is not None
            assert topic.seq == 1
        assert two.follower.repairs == 1
        assert two.follower.resyncs == 1
