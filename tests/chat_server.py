"""A small server on the loopback that speaks enough of OpenAI's API, and misbehaves when it is told to."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fault(Exception):
    """What a `reply` raises to answer with another status, other headers or other bytes."""

    def __init__(self, status: int, body: str = "{}", headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


@dataclass
class Reply:
    """An answer with more than its text; None leaves the field out."""

    text: str | None
    finish_reason: Any = "stop"
    num_tokens: Any = None


class ChatServer:
    """Answers chats with `reply(request)`; counts requests, and how many ran at once.

    Args:
        reply: Gets the request's JSON and returns the answer's text or a Reply, or raises Fault.
        models: What /v1/models lists; None: it answers 404, as some servers do.
        api_key: Refuse requests without it.
        delay_s: Seconds that each answer takes.
    """

    def __init__(
        self,
        reply: Callable[[dict[str, Any]], str | Reply],
        models: tuple[str, ...] | None = ("small",),
        api_key: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.reply = reply
        self.models = models
        self.api_key = api_key
        self.delay_s = delay_s
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def __enter__(self) -> "ChatServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self, None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.answer(self, json.loads(body))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any] | None) -> None:
        try:
            self._check_key(handler)
            body = self._models() if request is None else self._chat(handler, request)
            self._send(handler, 200, body, {})
        except Fault as fault:
            self._send(handler, fault.status, fault.body, fault.headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up

    def _check_key(self, handler: BaseHTTPRequestHandler) -> None:
        if self.api_key is not None and handler.headers["Authorization"] != f"Bearer {self.api_key}":
            raise Fault(401, '{"error": {"message": "Incorrect API key provided"}}')

    def _models(self) -> str:
        if self.models is None:
            raise Fault(404, '{"detail": "Not Found"}')
        return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    def _chat(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> str:
        with self._lock:
            self.requests.append(request)
            self.headers.append(dict(handler.headers))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay_s)
            reply = self.reply(request)
        finally:
            with self._lock:
                self._at_once -= 1
        reply = Reply(reply) if isinstance(reply, str) else reply
        choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}}
        if reply.finish_reason is not None:
            choice["finish_reason"] = reply.finish_reason
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "small", "choices": [choice]}
        if reply.num_tokens is not None:
            body["usage"] = {"prompt_tokens": 3, "completion_tokens": reply.num_tokens, "total_tokens": 3}
        return json.dumps(body)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: str, headers: dict[str, str]) -> None:
        data = body.encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


def question_of(request: dict[str, Any]) -> str:
    return request["messages"][-1]["content"]
