"""Whose request it is when a proxy brings it, and by which name it is counted."""

import pytest

from graphql_api.wire.addresses import FORWARDED_CHARACTERS_MAX, HOPS_MAX, Addresses, _forwarded, parse

PROXIES = ("10.0.0.0/8", "fd00::/8", "192.0.2.10")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:8080 ", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("192.0.2.300", None),
        ("[2001:db8::1", "2001:db8::1"),
        ("☃" * 1_000, None),
    ],
)
def test_an_address_is_found_in_whatever_a_proxy_writes(text: str, address: str | None) -> None:
    found = parse(text)
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        # Nobody is believed who is not trusted.
        ("198.51.100.7", {}, "198.51.100.7"),
        ("198.51.100.7", {"x-forwarded-for": "192.0.2.1"}, "198.51.100.7"),
        ("198.51.100.7", {"forwarded": "for=192.0.2.1"}, "198.51.100.7"),
        ("10.1.2.3", {}, "10.1.2.3"),
        ("10.1.2.3", {"x-forwarded-for": "192.0.2.1"}, "192.0.2.1"),
        # The client wrote what stands at the left.
        ("10.1.2.3", {"x-forwarded-for": "203.0.113.9, 192.0.2.1"}, "192.0.2.1"),
        ("10.1.2.3", {"x-forwarded-for": "192.0.2.1, 10.9.9.9, 192.0.2.10"}, "192.0.2.1"),
        ("10.1.2.3", {"x-forwarded-for": "10.0.0.5"}, "10.0.0.5"),
        ("10.1.2.3", {"x-forwarded-for": "[2001:db8::1]:443"}, "2001:db8::1"),
        ("fd00::1", {"x-forwarded-for": "192.0.2.1:55555"}, "192.0.2.1"),
        ("::ffff:10.1.2.3", {"x-forwarded-for": "192.0.2.1"}, "192.0.2.1"),
        # Garbage is where one stops: it came from the last that is known.
        ("10.1.2.3", {"x-forwarded-for": "192.0.2.1, unknown"}, "10.1.2.3"),
        ("10.1.2.3", {"x-forwarded-for": "192.0.2.1, unknown, 10.0.0.9"}, "10.0.0.9"),
        ("10.1.2.3", {"x-forwarded-for": ""}, "10.1.2.3"),
        ("10.1.2.3", {"x-forwarded-for": "," * 5_000}, "10.1.2.3"),
        ("10.1.2.3", {"x-forwarded-for": "x" * 60_000 + ", 192.0.2.1"}, "192.0.2.1"),
        ("10.1.2.3", {"x-forwarded-for": ", ".join(["192.0.2.1"] + ["10.0.0.9"] * HOPS_MAX)}, "10.0.0.9"),
        ("10.1.2.3", {"x-forwarded-for": ", ".join(["192.0.2.1"] + ["10.0.0.9"] * (HOPS_MAX - 1))}, "192.0.2.1"),
        ("10.1.2.3", {"forwarded": 'for="[2001:db8::1]:47";proto=https, For=10.0.0.9;by=10.1.2.3'}, "2001:db8::1"),
        ("10.1.2.3", {"forwarded": "proto=https"}, "10.1.2.3"),
        ("10.1.2.3", {"forwarded": "for=203.0.113.9", "x-forwarded-for": "192.0.2.1"}, "192.0.2.1"),
        (None, {"x-forwarded-for": "192.0.2.1"}, "unknown"),
        ("", {"x-forwarded-for": "192.0.2.1"}, "unknown"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxy(
    peer: str | None, headers: dict[str, str], client: str
) -> None:
    assert Addresses(PROXIES, ()).client(peer, headers) == client


def test_an_ipv6_address_is_counted_with_its_neighbours() -> None:
    addresses = Addresses(PROXIES, ())
    assert addresses.counted_as("2001:db8:1:2::7", {}) == addresses.counted_as("2001:db8:1:2:ffff::", {})
    assert addresses.counted_as("2001:db8:1:2::7", {}) != addresses.counted_as("2001:db8:1:3::7", {})
    assert addresses.counted_as("fd00::1", {"x-forwarded-for": "2001:db8:1:2::8"}) == "2001:db8:1:2::/64"
    assert addresses.counted_as("192.0.2.7", {}) == "192.0.2.7"


def test_an_address_without_limits_is_not_counted_and_a_client_behind_it_is() -> None:
    addresses = Addresses(("127.0.0.1",), ("127.0.0.0/8", "::1", "192.0.2.0/24"))
    assert addresses.counted_as("127.0.0.1", {}) is None
    assert addresses.counted_as("::1", {}) is None
    assert addresses.counted_as("127.0.0.1", {"x-forwarded-for": "198.51.100.7"}) == "198.51.100.7"
    assert addresses.counted_as("127.0.0.1", {"x-forwarded-for": "192.0.2.9"}) is None
    # Who is not trusted cannot say that it is one of them.
    assert addresses.counted_as("198.51.100.7", {"x-forwarded-for": "127.0.0.1"}) == "198.51.100.7"


def test_a_proxy_that_is_not_trusted_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    addresses = Addresses((), ())
    for _ in range(3):
        addresses.counted_as("10.1.2.3", {"x-forwarded-for": "192.0.2.1"})
    (record,) = caplog.records
    assert "10.1.2.3, which SPECTRAL_TRUSTED_PROXIES does not name" in record.message


def test_what_is_remembered_of_what_clients_write_is_bounded() -> None:
    assert len(_forwarded({"x-forwarded-for": "x" * 60_000})) == FORWARDED_CHARACTERS_MAX
    assert len(_forwarded({"forwarded": "for=" + "x" * 60_000})) <= FORWARDED_CHARACTERS_MAX
