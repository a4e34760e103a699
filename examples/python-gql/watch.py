"""Watch a task over the socket with gql: `pip install 'gql[websockets]'`."""

import asyncio
import os
import sys

from gql import Client, gql
from gql.transport.exceptions import TransportConnectionFailed, TransportError, TransportQueryError
from gql.transport.websockets import WebsocketsTransport

UPDATES = """
subscription ($taskId: ID!, $afterSeq: Int) {
  taskUpdates(taskId: $taskId, afterSeq: $afterSeq) {
    type
    task { status progress }
    events { seq message }
  }
}"""
FINAL = ("SUCCESS", "FAILED", "CANCELED")


async def watch(url: str, key: str | None, task_id: str) -> None:
    """Print each event once and in order, until the task ends; a connection that breaks is made again."""
    seen, attempt = 0, 0
    while True:
        transport = WebsocketsTransport(
            url=url.replace("http", "ws", 1),
            init_payload={"authorization": f"Bearer {key}"} if key else {},
            keep_alive_timeout=None,
            ping_interval=15,
            pong_timeout=5,
        )
        try:
            async with Client(transport=transport) as session:
                request = gql(UPDATES)
                # After each reconnect: what came after the last event seen.
                request.variable_values = {"taskId": task_id, "afterSeq": seen}
                async for result in session.subscribe(request):
                    attempt = 0
                    update = result["taskUpdates"]
                    for event in update["events"]:
                        print("event", event["seq"], event["message"], flush=True)
                        seen = event["seq"]
                    print("task", update["task"]["status"], update["task"]["progress"], flush=True)
                    if update["type"] == "DELETE" or update["task"]["status"] in FINAL:
                        print("ended", flush=True)
                        return
        except TransportQueryError:
            # The server has answered, and would answer the same again.
            raise
        except (TransportConnectionFailed, TransportError, OSError):
            pass
        await asyncio.sleep(min(10, 0.25 * 2**attempt))
        attempt += 1


if __name__ == "__main__":
    asyncio.run(
        watch(
            os.environ.get("SPECTRAL_URL", "http://127.0.0.1:8000/graphql"),
            os.environ.get("SPECTRAL_KEY"),
            sys.argv[1] if len(sys.argv) > 1 else "report-5f0c9a41",
        )
    )
