"""A Grid of Flower in memory: nodes are client apps of this process, without Ray and without a
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class MemoryGrid(Grid):
    """Nodes 1..n run `app`. `interfere` sees each reply: it may change it, or lose it with None."""

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        interfere: Callable[[int, Message], Message | None] = lambda node, reply: reply,
    ) -> None:
        # Messages carry who sent them. In the field the process of the ServerApp sets it.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._app, self._interfere, self._numbers = app, interfere, count(1)
        self._contexts = {
            node: Context(1, node, {"partition-id": node}, RecordDict(), {}) for node in range(1, nodes + 1)
        }
        self._run = Run.create_empty(1)
        self._replies: dict[str, Message] = {}
        self.sent: list[tuple[int, int]] = []

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        found = []
        for message in messages:
            node, name = message.metadata.dst_node_id, str(next(self._numbers))
            # The SuperLink gives a message its id.
            message.metadata.__dict__["_message_id"] = name
            self.sent.append((message.content["config"]["server-round"], node))
            try:
                reply = self._app(message, self._contexts[node])
            except Exception as error:
                reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node
            kept = self._interfere(node, reply)
            if kept is not None:
                self._replies[name] = kept
            found.append(name)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))
