"""A stand-in for the hub: repositories, large files and commits over its HTTP interface."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_test_token"
LICENSES = {"apache-2.0", "mit", "llama3.1", "llama3", "gemma", "cc-by-nd-4.0", "other", "unknown"}


@dataclass
class Hub:
    """What the stand-in holds, and what it was sent."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    sent: list[str] = field(default_factory=list)  # hashes of large files, in order
    commits: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)  # it waits, as told
    stop_after: int | None = None  # large files that are taken before it stops
    stops_by: str = "refusal"  # or "silence"
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""


def faults(card: str) -> list[str]:
    """What the hub's validator says of a card, as far as its rules are published."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    data = yaml.safe_load(match[1]) if match else {}
    found = []
    if data.get("license") not in LICENSES | {None}:
        found.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    if data.get("license") == "other" and not re.fullmatch(r"[\w.-]+", data["license_name"]):
        found.append('"license_name" is not valid')
    if not all(re.fullmatch("[a-z]{2,3}", code) for code in data.get("language", [])):
        found.append('"language" must be codes of ISO 639')
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", data.get("base_model", "a/b")):
        found.append('"base_model" is not valid. Use a model id from https://hf.co/models')
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            required = [entry["name"], result["task"]["type"]]
            required += [result["dataset"]["type"], result["dataset"]["name"]]
            for metric in result["metrics"]:
                required.append(metric["type"])
                if not isinstance(metric["value"], int | float):
                    found.append('"model-index" has a value that is no number')
            if not all(isinstance(value, str) and value for value in required):
                found.append('"model-index" lacks a required name')
    return found


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Start to answer for `hub`; its address is then in `hub.address`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, content: object, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            match = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
            if not match or match[1] not in hub.repositories:
                return self.answer({"error": "Repository not found"}, 404)
            name = match[1]
            if "/tree/" in self.path:
                files = hub.repositories[name]
                return self.answer(
                    [
                        {"type": "file", "path": path, "size": len(content), "oid": "c" * 40}
                        for path, content in files.items()
                    ]
                )
            info = {"id": name, "modelId": name, "private": name in hub.private, "sha": "a" * 40}
            self.answer(info | {"siblings": [], "tags": [], "downloads": 0, "likes": 0})

        def do_PUT(self) -> None:
            content = self.body()
            digest = self.path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == digest
            with hub.lock:
                stops = hub.stop_after is not None and len(hub.sent) >= hub.stop_after
                if not stops:
                    hub.large[digest] = content
                    hub.sent.append(digest)
            if not stops:
                return self.answer({})
            if hub.stops_by == "silence":
                hub.stalled.set()
                threading.Event().wait(60)
            self.answer({"error": "the storage is full"}, 403)

        def do_POST(self) -> None:
            content = self.body()
            if self.path == "/api/validate-yaml":
                errors = [{"message": text} for text in faults(json.loads(content)["content"])]
                return self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                values = json.loads(content)
                name = f"{values['organization']}/{values['name']}"
                url = {"url": f"{hub.address}/{name}"}
                if name in hub.repositories:
                    return self.answer(url | {"error": "You already created this model repo"}, 409)
                hub.repositories[name] = {}
                hub.private |= {name} if values.get("visibility") == "private" else set()
                return self.answer(url)
            match = re.match(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/(.*)", self.path)
            name, rest = match[1], match[2].partition("?")[0]
            files = hub.repositories[name]
            if rest.startswith("preupload/"):
                known = {"shouldIgnore": False}
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular",
                        **known,
                    }
                    for file in json.loads(content)["files"]
                ]
                return self.answer({"files": modes})
            if rest == "info/lfs/objects/batch":
                objects = []
                for entry in json.loads(content)["objects"]:
                    upload = {"href": f"{hub.address}/large/{entry['oid']}"}
                    new = {} if entry["oid"] in hub.large else {"actions": {"upload": upload}}
                    objects.append({"oid": entry["oid"], "size": entry["size"], **new})
                return self.answer({"transfer": "basic", "objects": objects})
            assert rest.startswith("commit/main"), self.path
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            hub.commits += 1
            url = f"{hub.address}/{name}/commit/{'b' * 40}"
            self.answer({"commitUrl": url, "commitOid": "b" * 40, "success": True})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
