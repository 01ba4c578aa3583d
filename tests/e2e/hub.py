"""A hub in this process: a folder as the one repository of a Hugging Face hub, and as plain files, with a log of what was asked.

Large files are answered by a redirect to another port, as the hub's own go to another host. Pods reach it at `host`.

    python tests/e2e/hub.py FOLDER [PORT]          # serves until it is ended
"""

import contextlib
import hashlib
import http.server
import json
import os
import re
import sys
import threading

REPOSITORY = "own/m1-demo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Two servers on one folder. `token`: what the hub wants to see; `cut`: bytes after which the next large answers break off."""

    def __init__(self, folder, host="127.0.0.1", bind="", port=0, token=None):
        self.folder, self.token, self.log, self.cuts = folder, token, [], []
        self.sums = {name: self._digest(name) for name in sorted(os.listdir(folder))}
        self.servers = [self._serve(bind, port, self._hub), self._serve(bind, 0, self._file)]
        self.url, self.cdn = (f"http://{host}:{server.server_port}" for server in self.servers)

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _digest(self, name):
        with open(os.path.join(self.folder, name), "rb") as file:
            content = file.read()
        return len(content), hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _serve(self, bind, port, answer):
        log = self.log

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                log.append((self.path, self.headers.get("range"), self.headers.get("authorization")))
                self.close_connection = True
                answer(self, self.path.split("?")[0])

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer((bind, port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _hub(self, request, path):
        if path.startswith("/plain/"):
            return self._plain(request, path)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return reply(request, 401, b"", {"X-Error-Message": "Invalid credentials"})
        api = f"/api/models/{REPOSITORY}"
        if path == f"{api}/revision/main":
            return reply_json(request, {"sha": COMMIT})
        if path == f"{api}/tree/{COMMIT}":
            return reply_json(request, [self._entry(name) for name in self.sums])
        name = path.rsplit("/", 1)[-1]
        if path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/") and name in self.sums:
            if not name.endswith(".safetensors"):
                return self._file(request, path)
            size, sha256, _ = self.sums[name]
            headers = {"X-Linked-Size": size, "X-Linked-Etag": f'"{sha256}"', "X-Repo-Commit": COMMIT}
            return reply(request, 302, b"", {"Location": f"{self.cdn}/{name}?signature=x", **headers})
        return reply(request, 404, b"", {"X-Error-Code": "EntryNotFound" if path.startswith(f"/{REPOSITORY}/") else "RepoNotFound"})

    def _entry(self, name):
        size, sha256, git = self.sums[name]
        entry = {"type": "file", "path": name, "size": size, "oid": git}
        return {**entry, "lfs": {"oid": sha256, "size": size, "pointerSize": 134}} if name.endswith(".safetensors") else entry

    def _plain(self, request, path):
        if path == "/plain/SHA256SUMS":
            lines = (f"{sha256}  {name}\n" for name, (_, sha256, _) in self.sums.items())
            return reply(request, 200, "".join(lines).encode())
        return self._file(request, path) if path.count("/") == 2 else reply(request, 404, b"")

    def _file(self, request, path):
        name = path.rsplit("/", 1)[-1]
        if name not in self.sums:
            return reply(request, 404, b"")
        with open(os.path.join(self.folder, name), "rb") as file:
            content = file.read()
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range") or "")
        if not given:
            return reply(request, 200, content, cut=self._cut(name))
        first, last = int(given[1]), min(int(given[2] or len(content) - 1), len(content) - 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return reply(request, 206, content[first : last + 1], headers, self._cut(name))

    def _cut(self, name):
        return self.cuts.pop() if self.cuts and name.endswith(".safetensors") else None


def reply_json(request, value):
    reply(request, 200, json.dumps(value).encode())


def reply(request, status, body, headers=None, cut=None):
    request.send_response(status)
    for name, value in {"Content-Length": len(body), "Connection": "close", **(headers or {})}.items():
        request.send_header(name, str(value))
    request.end_headers()
    # Whoever wanted a header only goes away before the end.
    with contextlib.suppress(ConnectionError):
        request.wfile.write(body[:cut])


@contextlib.contextmanager
def hub(folder, **options):
    served = Hub(folder, **options)
    try:
        yield served
    finally:
        served.close()


if __name__ == "__main__":
    with hub(sys.argv[1], port=int(sys.argv[2]) if len(sys.argv) > 2 else 0, token=os.environ.get("HUB_TOKEN")) as served:
        print(served.url, flush=True)
        threading.Event().wait()
