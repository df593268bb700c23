"""The local runner: takes Flower's tasks from the SuperNode of this machine and answers them with the installed app.

Flower would install what the authority shipped and start a process of it per message. Here the bundle is looked at for
its digest only: a task under any other digest than one of the allow-list is refused, and for all others the ClientApp
of the installed package answers, in this process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

_LOG = logging.getLogger(__name__)

COMPONENT = "cityfed-client"
TASK_TYPE = "flwr-clientapp"
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@dataclass(frozen=True, kw_only=True)
class LocalRunner:
    """Runs one task after the other.

    Attributes:
        address: host and port of the SuperNode's runtime interface, on loopback.
        secret: what the SuperNode asks of whoever takes tasks.
        app: the installed ClientApp.
        bundles: digests, in hex, of the bundles that this department lets refer to its app.
        between_tasks: called before every look for a task.
        poll_s: pause between two looks for a task, in seconds.
    """

    address: str
    secret: bytes
    app: ClientApp
    bundles: Collection[str]
    between_tasks: Callable[[], None] = lambda: None
    poll_s: float = 0.25

    def serve(self, stopped: threading.Event) -> None:
        """Take tasks until told to stop; a SuperNode that is away is waited for."""
        with self._client(
            SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods={ACQUIRE})
        ) as client:
            while not stopped.is_set():
                self.between_tasks()
                token = self._acquire(client)
                if token:
                    self._run(token)
                else:
                    stopped.wait(self.poll_s)

    def _acquire(self, client: RuntimeHttpClient) -> str:
        """Return the token of a task; empty when there is none or nobody to ask."""
        try:
            return client.AcquireTask(AcquireTaskRequest(supported_task_types=[TASK_TYPE])).token
        except httpx.HTTPError as error:
            _LOG.debug("the SuperNode gave no task: %s", type(error).__name__)
            return ""

    def _run(self, token: str) -> None:
        """Answer one task; whatever goes wrong with it, the next one is served."""
        with self._client(RuntimeTokenHttpInterceptor(token)) as client:
            beat = HeartbeatSender(_heartbeat(client))
            beat.start()
            try:
                self._answer(client)
            except Exception as error:  # noqa: BLE001 - a task that fails must not end the node
                _LOG.warning("a task of Flower ended early: %s", type(error).__name__)
                push_task_output(client, None, SubStatus.FAILED, "")
            finally:
                if beat.is_running:
                    beat.stop()

    def _answer(self, client: RuntimeHttpClient) -> None:
        """Pull a task's message, answer it, push the answer."""
        message, context, _, fab = pull_task_input(client)
        reply = self.reply(message, context, fab.hash_str)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.FAILED if reply.has_error() else SubStatus.COMPLETED, "")

    def reply(self, message: Message, context: Context, bundle: str) -> Message:
        """Let the installed app answer, if the department knows the bundle that refers to it.

        Args:
            message: what Flower carries.
            context: of the node.
            bundle: digest of what the authority shipped, in hex.

        Guarantees:
            Nothing that was shipped is looked at, and no text of an exception leaves.
        """
        if bundle not in self.bundles:
            _LOG.warning("a task of Flower came with a bundle that is not on the allow-list: %.64s", bundle)
            return Message(Error(ErrorCode.INVALID_FAB), reply_to=message)
        try:
            return self.app(message, context)
        except Exception as error:  # noqa: BLE001 - the text of an exception could hold anything and stays here
            _LOG.warning("the app could not answer a task of Flower: %s", type(error).__name__)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)

    def _client(self, *interceptors: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor) -> RuntimeHttpClient:
        """Connect without Flower's retries: those end the process when a task is no longer wanted."""
        return RuntimeHttpClient.from_server_address(
            self.address,
            insecure=True,  # loopback of one machine; the secret itself never travels
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=COMPONENT), *interceptors],
        )


def _heartbeat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Return the sign of life of a task; Flower's own ends the process when the task was cancelled."""

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            return False
        return True

    return beat
