"""Models sent to a server that speaks as much of the hub's language as is needed."""

import base64
import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import recipe
from schemas import files, manifest
from tests import tiny
from tests.train import shards
from train import hub, trainer
from train.config import TrainConfig

REPOSITORY = "me/fused"


class Hub(http.server.ThreadingHTTPServer):
    """Keeps one repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.stored: dict[str, bytes] = {"old.safetensors": b""}
        self.made: list[dict[str, Any]] = []
        self.public = self.down = False
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            paths = [
                {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                for path, data in self.server.stored.items()
            ]
            self.reply(paths)
        else:
            self.reply({"id": REPOSITORY, "private": not self.server.public})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.down:
            self.reply({"error": "no write access"}, 403)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.reply({"url": f"{self.server.address}/{REPOSITORY}"})
        elif "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(body)["files"]]
            told = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply({"files": [{"path": path, **told} for path in named]})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
            commit = f"{self.server.address}/{REPOSITORY}/commit/{'c' * 40}"
            self.reply({"success": True, "commitOid": "c" * 40, "commitUrl": commit})
        else:
            self.reply({"warnings": [], "errors": []})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del self.server.stored[value["path"]]
            elif line["key"] == "file":
                self.server.stored[value["path"]] = base64.b64decode(value["content"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "runs").mkdir(parents=True)
    for name in ("README.md", "model.safetensors", "runs/events"):
        (folder / name).write_text(name)
    (folder / manifest.NAME).write_text("{}")
    return folder


WHOLE = {"README.md", "model.safetensors", manifest.NAME}


@pytest.mark.parametrize("where", ["local", "memory://hub/model"])
def test_a_model_is_sent_once_private_and_without_event_files(
    server: Hub, model: Path, where: str
) -> None:
    output = str(model)
    if where != "local":
        for path in files.tree(output):
            name = path.removeprefix(f"{output}/")
            files.write_bytes(f"{where}/{name}", files.read_bytes(path))
        output = where
    assert hub.push(output, REPOSITORY, public=False)
    assert server.stored.keys() == WHOLE
    assert server.stored["model.safetensors"] == b"model.safetensors"
    assert [made["visibility"] for made in server.made] == ["private"]
    assert server.tokens == {"Bearer hf_secret"}
    server.stored.clear()
    assert not hub.push(output, REPOSITORY, public=False)
    assert not server.stored
    files.write_bytes(files.join(output, manifest.NAME), b'{"other": 1}')
    assert hub.push(output, REPOSITORY, public=False)
    assert server.stored.keys() == WHOLE


def test_a_hub_that_takes_nothing_leaves_the_model_and_is_asked_again(
    server: Hub, model: Path
) -> None:
    server.down = True
    with pytest.raises(ConnectionError, match=r"is whole in .*give the same command"):
        hub.push(str(model), REPOSITORY, public=False)
    assert not (model / hub.MARK).exists()
    server.down = False
    assert hub.push(str(model), REPOSITORY, public=False)


def test_what_shall_be_private_is_not_sent_where_everybody_reads(
    server: Hub, model: Path
) -> None:
    server.public = True
    with pytest.raises(ConnectionError, match="must be private, it is public"):
        hub.push(str(model), REPOSITORY, public=False)
    assert server.stored.keys() == {"old.safetensors"}
    assert hub.push(str(model), REPOSITORY, public=True)


def test_a_finished_run_that_was_not_sent_is_sent_when_it_is_asked_for(
    server: Hub, tmp_path: Path
) -> None:
    config = TrainConfig(
        data=str(shards.write(tmp_path / "fused", vocabulary=300)),
        model=str(tiny.llama(tmp_path / "target")),
        output=str(tmp_path / "out"),
        push_to_hub=REPOSITORY,
        batch_size=2,
        max_steps=1,
        threads=1,
        device="cpu",
        peak_tflops=1.0,
    )
    lines: list[str] = []
    server.down = True
    with pytest.raises(ConnectionError, match="403 Forbidden"):
        trainer.train(config, lines.append)
    server.down = False
    at = Path(config.output, "model.safetensors").stat().st_mtime_ns
    assert trainer.train(config, lines.append).skipped
    assert lines[-1] == f"sent to {REPOSITORY} on the hub"
    assert Path(config.output, "model.safetensors").stat().st_mtime_ns == at
    assert trainer.train(config, lines.append).skipped
    assert lines.count(lines[-1]) == 1
    named = {f.name for f in manifest.read(config.output, "train").files}
    assert named <= server.stored.keys()
    with pytest.raises(ValueError, match="push_to_hub must be ORG/NAME"):
        dataclasses.replace(config, push_to_hub="fused")


@pytest.mark.parametrize(
    ("train", "arm"),
    [
        ('push_to_hub = "me/x"', ""),
        ("", 'learning_rate = [1e-4, 2e-4]\npush_to_hub = "me/x"'),
    ],
)
def test_runs_of_a_recipe_are_not_sent_to_one_place(
    tmp_path: Path, train: str, arm: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
output = "{tmp_path}/run"
[corpus]
inputs = ["c.jsonl"]
[target]
model = "t"
[sources.one]
model = "s"
[train]
{train}
[arms.fused]
{arm}
"""
    )
    with pytest.raises(ValueError, match="push_to_hub must stand in the table of one"):
        recipe.read(str(path))
