"""A hub of our own: the few endpoints of the Hugging Face hub that fetching needs, over a folder of repositories."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"  # of repositories of one commit


class Hub(BaseHTTPRequestHandler):
    """Repositories at ``root/owner/name``; where there are ``revisions``, each commit at ``root/owner/name/commit``."""

    root: Path
    revisions: dict[str, str]  # branches to commits
    asked: list[str]  # paths of files
    heard: list[str]  # all paths

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.heard.append(path)
        if path.startswith("api/models/"):
            owner, name, *what = path.split("/")[2:]
            commit = self._commit(what[1] if len(what) > 1 else "main")
            folder = self._folder(owner, name, commit)
            if not folder.is_dir():
                error = "RevisionNotFound" if self.revisions else "RepoNotFound"
                return self._reply(404, b"{}", {"X-Error-Code": error})
            files = [
                {"type": "file", "path": (where := str(file.relative_to(folder))), "rfilename": where, "oid": "0" * 40}
                | {"size": file.stat().st_size}
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
            content = files if what[:1] == ["tree"] else {"id": f"{owner}/{name}", "sha": commit, "siblings": files}
            return self._reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        owner, name, _, commit, *parts = path.split("/")
        file = self._folder(owner, name, commit).joinpath(*parts)
        if not file.is_file():
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        self.asked.append(path)
        body = file.read_bytes()
        return self._reply(200, body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def _commit(self, revision: str) -> str:
        return self.revisions.get(revision, revision) if self.revisions else SHA

    def _folder(self, owner: str, name: str, commit: str) -> Path:
        repository = self.root / owner / name
        return repository / commit if self.revisions else repository

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving_hub(root: Path, revisions: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """A hub over a folder; the environment of processes that are to ask it: its client reads that once, on import."""
    Hub.root, Hub.revisions, Hub.asked, Hub.heard = root, revisions or {}, [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(root.with_name("hub-cache")),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        yield environment
        server.shutdown()
        thread.join()
