"""A hub on 127.0.0.1: the endpoints that huggingface_hub and datasets ask for a model or a data set, and a record of
what was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """Files by commit, branches by name. ``gated`` answers downloads with that status, as the hub does."""

    commits: dict[str, Mapping[str, bytes]]
    branches: dict[str, str]
    gated: int | None = None

    def commit(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class FakeHub:
    endpoint: str
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def add(self, name: str, files: Mapping[str, bytes], *, gated: int | None = None) -> str:
        """Put a commit on the main branch of ``name``; its sha comes back."""
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo({}, {}, gated))
        repo.commits[sha] = files
        repo.branches["main"] = sha
        return sha

    def downloaded(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {line.split("/")[-1] for line in self.asked if line.startswith("GET") and "/resolve/" in line}


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub("")

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.asked.append(f"{self.command} {path}")
        if self.state.broken:
            return self._send(503, b"down")
        words = path.strip("/").split("/")
        if words[:2] in (["api", "models"], ["api", "datasets"]):
            return self._api(words[2:])
        return self._file(words[words[0] == "datasets" :])

    def _api(self, words: list[str]) -> None:
        """/api/models/ORG/NAME[/revision/REV | /tree/REV[/FOLDER] | /paths-info/REV]"""
        repo = self.state.repos.get("/".join(words[:2]))
        if repo is None:
            return self._error(401, "RepoNotFound")
        kind, revision = (words[2], words[3]) if len(words) > 3 else ("revision", "main")
        sha = repo.commit(revision)
        if sha is None:
            return self._error(404, "RevisionNotFound")
        files = repo.commits[sha]
        if kind == "tree":
            return self._tree(files, "".join(f"{word}/" for word in words[4:]))
        if kind == "paths-info":
            asked = parse_qs(self.body.decode()).get("paths", [])
            return self._send(200, json.dumps([_entry(n, c) for n, c in files.items() if n in asked]).encode())
        about = {
            "id": "/".join(words[:2]),
            "sha": sha,
            "gated": bool(repo.gated),
            "private": False,
            "tags": [],
        }
        about["siblings"] = [{"rfilename": n, "size": len(c), "blobId": _oid(c)} for n, c in files.items()]
        return self._send(200, json.dumps(about).encode())

    def _tree(self, files: Mapping[str, bytes], folder: str) -> None:
        """What lies in a folder, and below it where that's asked for."""
        inside = {name: content for name, content in files.items() if name.startswith(folder)}
        if not inside:
            return self._error(404, "EntryNotFound")
        if "recursive=true" in self.path.lower():
            return self._send(200, json.dumps([_entry(n, c) for n, c in inside.items()]).encode())
        folders = {name[len(folder) :].split("/")[0] for name in inside if "/" in name[len(folder) :]}
        found = [{"type": "directory", "path": folder + name, "oid": _oid(name.encode())} for name in sorted(folders)]
        found += [_entry(n, c) for n, c in inside.items() if "/" not in n[len(folder) :]]
        return self._send(200, json.dumps(found).encode())

    def _file(self, words: list[str]) -> None:
        """/ORG/NAME/resolve/REV/FILE"""
        repo = self.state.repos.get("/".join(words[:2]))
        if repo is None or len(words) < 5:
            return self._error(404, "RepoNotFound")
        if repo.gated:
            return self._error(repo.gated, "GatedRepo")
        sha = repo.commit(words[3])
        if sha is None:
            return self._error(404, "RevisionNotFound")
        content = repo.commits[sha].get("/".join(words[4:]))
        if content is None:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": sha})
        about = {"X-Repo-Commit": sha, "ETag": f'"{_oid(content)}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
            about["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            return self._send(206, content[start:end], about)
        return self._send(200, content, about)

    def _error(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
