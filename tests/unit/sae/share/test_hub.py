"""Pushed and pulled through huggingface_hub itself, against a hub on this machine.

The stand-in answers what the client asks of a hub for these calls: a repository made, cards checked, files committed,
a revision resolved, its tree listed, files served. It takes every file inside the commit; the real one takes large ones
through a storage of its own (Xet), which is the client's matter and not shown here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from mis_lab.core.errors import ConfigError, MissingFileError, StoreError
from mis_lab.sae import io, load_sae
from mis_lab.sae.share.export import export
from mis_lab.sae.share.hub import pull, push

TOKEN = "hf_stand_in"
REPOSITORY = "someone/saes"


class StandIn(ThreadingHTTPServer):
    """A hub of models: repository → path → content. `refuses` is an HTTP status that it gives to everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.refuses = 0
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, repository: str) -> str:
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.files[repository].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing on stderr."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body, path = self.rfile.read(length), unquote(urlparse(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.refuses:
            return self._send({"error": "no"}, self.server.refuses)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            return self._repository(f"{owner}/{name}", rest, body)
        owner, name, resolve, commit, *parts = path.strip("/").split("/")
        content = self.server.files.get(f"{owner}/{name}", {}).get("/".join(parts))
        if resolve != "resolve" or content is None:
            return self._missing("EntryNotFound")
        headers = {"ETag": f'"{_git_sha(content)}"', "X-Repo-Commit": commit}
        return self._send(content, headers=headers)

    def _create(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send({"error": "Invalid username or password."}, 401)
        repository = f"{asked['organization']}/{asked['name']}"
        if repository in self.server.files:
            return self._send({"error": "exists", "url": f"{self.server.address}/{repository}"}, 409)
        self.server.files[repository] = {}
        if asked.get("visibility") == "private":
            self.server.private.add(repository)
        return self._send({"url": f"{self.server.address}/{repository}"})

    def _repository(self, repository: str, rest: list[str], body: bytes) -> None:
        may = repository not in self.server.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository not in self.server.files or not may:
            return self._missing("RepoNotFound")
        files, commit = self.server.files[repository], self.server.commit_of(repository)
        if rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return self._send({"files": modes})
        if rest[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.server.commit_of(repository)
            address = f"{self.server.address}/{repository}/commit/{commit}"
            return self._send({"commitUrl": address, "commitOid": commit, "success": True})
        if rest[:1] == ["revision"] and rest[1] not in ("main", commit):
            return self._missing("RevisionNotFound")
        if rest[:1] == ["tree"]:
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": _git_sha(data)} for path, data in files.items()
            ]
            return self._send(listed)
        return self._send({"id": repository, "sha": commit, "siblings": []})

    def _missing(self, code: str) -> None:
        self._send({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Lets the client ask a hub at an address; it read the environment when it was imported."""

    def go(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        huggingface_hub.close_session()

    return go


@pytest.fixture
def hub(online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with serving() as server:
        online(server.address)
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def shared(made_run: Callable[..., Any], tmp_path: Path) -> Path:
    """Two exported SAEs, and files beside them that are nobody's business."""
    folder = tmp_path / "shared"
    export(made_run(("blocks.2", "blocks.4")).folder, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "blocks.4" / "manifest.json").write_text('{"host": "mine"}')
    return folder


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_there_and_back(hub: StandIn, shared: Path, tmp_path: Path) -> None:
    address = push(shared, REPOSITORY)
    assert address.startswith(f"{hub.address}/{REPOSITORY}/commit/")
    assert sorted(hub.files[REPOSITORY]) == [
        "README.md",
        *(
            f"{site}/{name}"
            for site in ("blocks.2", "blocks.4")
            for name in ("README.md", "sae.json", "sae.safetensors")
        ),
    ]
    back = pull(REPOSITORY, tmp_path / "back")
    assert [folder.name for folder in back] == ["blocks.2", "blocks.4"]
    for folder in back:
        for name in ("README.md", "sae.json", "sae.safetensors"):
            assert (folder / name).read_bytes() == (shared / folder.name / name).read_bytes()
    assert torch.equal(load_sae(tmp_path / "back", "blocks.4").W_dec, load_sae(shared, "blocks.4").W_dec)


def test_one_site_of_a_revision(hub: StandIn, shared: Path, tmp_path: Path) -> None:
    push(shared, REPOSITORY)
    (folder,) = pull(REPOSITORY, tmp_path / "back", "blocks.4", revision=hub.commit_of(REPOSITORY))
    assert folder == tmp_path / "back" / "blocks.4"
    assert not (tmp_path / "back" / "blocks.2").exists()
    assert not [asked for asked in hub.asked if "blocks.2" in asked]
    with pytest.raises(MissingFileError, match=r"holds no SAE of mis_lab at blocks\.9") as told:
        pull(REPOSITORY, tmp_path / "other", "blocks.9")
    one_line(told.value)


def test_pushed_again_and_private(hub: StandIn, shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    push(shared, REPOSITORY, private=True)
    assert hub.private == {REPOSITORY}
    io.save(load_sae(shared, "blocks.2"), shared / "blocks.6")
    push(shared, REPOSITORY)
    assert "blocks.6/sae.json" in hub.files[REPOSITORY]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        MissingFileError, match=f"no repository {REPOSITORY}, or none that you may read.*HF_TOKEN"
    ) as told:
        pull(REPOSITORY, tmp_path / "back")
    assert hub.address in one_line(told.value)


def test_repositories_that_are_not_there(hub: StandIn, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no repository someone/nothing, or none") as told:
        pull("someone/nothing", tmp_path / "back")
    assert hub.address in one_line(told.value)
    hub.files[REPOSITORY] = {"cfg.json": b"{}", "sae_weights.safetensors": b"", "run.py": b"print()"}
    with pytest.raises(MissingFileError, match=f"no such revision of {REPOSITORY}.*--revision") as told:
        pull(REPOSITORY, tmp_path / "back", revision="v2")
    one_line(told.value)
    with pytest.raises(MissingFileError, match=r"holds no SAE of mis_lab; .*'mis-lab sae import'") as told:
        pull(REPOSITORY, tmp_path / "back")
    one_line(told.value)
    assert not (tmp_path / "back" / "run.py").exists(), "nothing that could run is fetched"


@pytest.mark.parametrize("name", ["saes", "a/b/c", "some one/saes", "someone/sa--es"])
def test_names_that_are_none(name: str, shared: Path, tmp_path: Path) -> None:
    for ask in (lambda: push(shared, name), lambda: pull(name, tmp_path / "back")):
        with pytest.raises(ConfigError, match=r"is no name of a repository.*Use OWNER/NAME") as told:
            ask()
        one_line(told.value)


def test_without_a_token(hub: StandIn, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"needs a token of http.*HF_TOKEN and .*'hf auth login'") as told:
        push(shared, REPOSITORY)
    one_line(told.value)
    assert not hub.asked
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MissingFileError, match=r"answers 401|no repository") as told:
        push(shared, REPOSITORY)
    one_line(told.value)


@pytest.mark.parametrize(("status", "said"), [(403, "Check that the token may write"), (400, "push again later")])
def test_a_hub_that_refuses(hub: StandIn, shared: Path, status: int, said: str) -> None:
    hub.refuses = status
    with pytest.raises(MissingFileError, match=f"cannot push .*shared to {REPOSITORY}: .*{status}.*{said}") as told:
        push(shared, REPOSITORY)
    one_line(told.value)


def test_a_hub_that_cannot_be_reached(
    online: Callable[[str], None], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        address = server.address
    online(address)  # nobody listens there any more
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(
        MissingFileError, match=r"cannot pull someone/saes: .*cannot be reached.*by hand, or set HF_ENDPOINT"
    ) as told:
        pull(REPOSITORY, tmp_path / "back")
    assert address in one_line(told.value)
    assert f"Put sae.safetensors and sae.json of {REPOSITORY} into {tmp_path / 'back'}" in str(told.value)
    with pytest.raises(
        MissingFileError, match=f"cannot push {shared} to {REPOSITORY}: {address} cannot be reached"
    ) as told:
        push(shared, REPOSITORY)
    one_line(told.value)


def test_offline_by_choice(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    for ask in (lambda: push(shared, REPOSITORY), lambda: pull(REPOSITORY, tmp_path / "back")):
        with pytest.raises(MissingFileError, match=r"HF_HUB_OFFLINE forbids to ask https://.*Unset it") as told:
            ask()
        one_line(told.value)


def test_nothing_to_push(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no SAE in .*'mis-lab sae export RUN_DIR FOLDER'"):
        push(tmp_path, REPOSITORY)


def test_bugs_keep_their_traceback(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_keywords: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ZeroDivisionError):
        pull(REPOSITORY, tmp_path / "back")
