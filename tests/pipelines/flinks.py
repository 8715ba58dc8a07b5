"""A stand-in for Flink's REST interface."""

import http.server
import json
import threading
from typing import Any


def managers(*ports: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """Returns what Flink says of TaskManagers."""
    paths = [f"pekko.tcp://flink@{host}:{n}/user/rpc/taskmanager_0" for n in ports]
    return {"taskmanagers": [{"id": path, "path": path} for path in paths]}


class Flink:
    """Answers as Flink's REST interface does."""

    def __init__(self, answers: dict[str, Any]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path.lstrip("/"))
                self.send_response(404 if found is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def do_PATCH(self) -> None:
                answers.setdefault("cancelled", []).append(self.path)
                self.send_response(202)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Stays silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.master = f"localhost:{self._server.server_port}"
        answers.setdefault("taskmanagers", managers(self._server.server_port))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


OVERVIEW = {
    "flink-version": "1.19.3",
    "slots-total": 4,
    "slots-available": 0,
    "taskmanagers": 2,
}
JOB = {
    "jid": "abc",
    "name": "BeamApp-somebody",
    "state": "RUNNING",
    "start-time": 7,
    "tasks": {"scheduled": 3},
}
