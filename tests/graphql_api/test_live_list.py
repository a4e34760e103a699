"""A list that is watched: every change of what a filter means, the latest state of each task, and nothing stale."""

from tests.graphql_api.clients import Answer, Api, Socket, data
from tests.graphql_api.conftest import Serving

LIST = """
    subscription($filter: TaskFilter) {
      tasksUpdated(filter: $filter) { type task { id status progress seq } events { seq message } }
    }
"""
READ = "query($filter: TaskFilter) { tasks(filter: $filter) { nodes { id seq status } } }"


async def watch(socket: Socket, filter: Answer | None = None, query: str = LIST) -> str:
    """Begin to watch a list; return when it has begun."""
    watching = await socket.subscribe(query, {"filter": filter})
    # What is asked after it on the same socket is answered after it has begun.
    assert data(await socket.ask("{ viewer { name } }"))
    return watching


async def told(socket: Socket, watching: str) -> Answer:
    """The next update."""
    update = data(await socket.following(watching))["tasksUpdated"]
    assert isinstance(update, dict)
    return update


async def test_every_change_of_every_task_is_told(serving: Serving) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        watching = await watch(socket)
        await api.create("A")
        assert await told(socket, watching) == {
            "type": "EVENT",
            "task": {"id": "A", "status": "PENDING", "progress": 0, "seq": 1},
            "events": [{"seq": 1, "message": "Task created"}],
        }
        await api.create("B")
        assert (await told(socket, watching))["task"]["id"] == "B"
        await api.report("A", 40)
        update = await told(socket, watching)
        assert (update["type"], update["task"]["progress"], update["events"][0]["seq"]) == ("PROGRESS", 40, 2)
        await api.complete("A")
        assert (await told(socket, watching))["type"] == "COMPLETE"
        await api.ask('mutation { delete(taskId: "B") }')
        update = await told(socket, watching)
        assert (update["type"], update["task"]["id"], update["events"]) == ("DELETE", "B", [])
