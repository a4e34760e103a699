"""Whatever is sent, the server answers it or says why not, and goes on: no crash, no hang, no memory that stays.

``make fuzz`` sends more; FUZZ_INPUTS says how many inputs in all.
"""

import json
import os
from random import Random
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hostile.inputs import document, json_values, scratched, text_of
from tests.hostile.target import serving

INPUTS: Final = int(os.environ.get("FUZZ_INPUTS", "10000"))
TYPES: Final = (
    *("application/json", "application/json; charset=utf-8", "application/graphql-response+json", "*/*", "text/html"),
    *("text/event-stream", "multipart/mixed", "text/plain", "application/x-www-form-urlencoded", "", ";;;", "a/b;q=x"),
)


def fuzz(examples: int) -> settings:
    """So many examples, the same in each run unless more are asked for."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize="FUZZ_INPUTS" not in os.environ,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def test_bodies(database: str) -> None:
    with serving(database) as target:

        @fuzz(INPUTS * 4 // 10)
        @given(st.data())
        def send(data: st.DataObject) -> None:
            random = Random(data.draw(st.integers(0, 2**32)))
            members: dict[str, Any] = {"query": "{ viewer { name } }", "variables": {"a": 1}, "operationName": None}
            match random.randrange(4):
                case 0:
                    body = data.draw(st.binary(max_size=300))
                case 1:
                    body = text_of(data.draw(json_values)).encode(errors="surrogatepass")
                case 2:
                    members[random.choice([*members, "extensions"])] = data.draw(json_values)
                    body = text_of(members).encode(errors="surrogatepass")
                case _:
                    body = scratched(json.dumps(members).encode(), random)
            usual = random.random() < 0.7
            headers = {"Content-Type": TYPES[0] if usual else random.choice(TYPES)}
            if random.random() < 0.5:
                headers["Accept"] = ", ".join(random.choices(TYPES, k=random.randrange(1, 4)))
            method = "POST" if usual else random.choice(["POST", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
            target.ask(method, random.choice(["/graphql", "/graphql", "/graphql?query=%7B", "/", "/x"]), headers, body)

        send()
        assert {200, 400, 405, 415} <= target.answers.keys()


def test_documents(database: str) -> None:
    with serving(database) as target:

        @fuzz(INPUTS * 4 // 10)
        @given(st.integers(0, 2**32))
        def send(seed: int) -> None:
            random = Random(seed)
            made = document(random)
            body = text_of({"query": made.text, "variables": made.variables}).encode(errors="surrogatepass")
            accept = random.choice(["application/json", "application/graphql-response+json", "text/event-stream"])
            target.ask("POST", "/graphql", {"Content-Type": "application/json", "Accept": accept}, body)

        send()
        assert {200, 400, 406} <= target.answers.keys()


def test_sockets(database: str) -> None:
    with serving(database) as target:

        @fuzz(INPUTS * 2 // 10)
        @given(st.data())
        def send(data: st.DataObject) -> None:
            random = Random(data.draw(st.integers(0, 2**32)))
            introduction = ['{"type":"connection_init"}'] if random.random() < 0.7 else []
            target.talk(
                introduction + [_message(data, random) for _ in range(random.randrange(1, 8))],
                # Frames that no library would send; what comes back is the end.
                data.draw(st.binary(min_size=1, max_size=40)) if random.random() < 0.2 else b"",
            )

        send()
        assert {"alive", "next", "error", 4400, 4429} <= target.answers.keys()


def _message(data: st.DataObject, random: Random) -> str:
    if random.random() < 0.1:
        return text_of(data.draw(json_values))
    made = document(random)
    message: dict[str, Any] = {
        "type": random.choice(["connection_init", "subscribe", "subscribe", "subscribe", "complete", "ping", "pong"]),
        "id": random.choice(["1", "2", "3"]),
        "payload": {"query": made.text, "variables": made.variables},
    }
    if random.random() < 0.2:
        # Some are answered whatever the schema is like, so that what comes after an answer is tried, too.
        message["payload"] = {"query": "{ viewer { name } }"}
    match random.randrange(8):
        case 0:
            message[random.choice(list(message))] = data.draw(json_values)
        case 1:
            del message[random.choice(list(message))]
        case 2:
            return scratched(json.dumps(message).encode(), random).decode(errors="replace")
    return text_of(message)
