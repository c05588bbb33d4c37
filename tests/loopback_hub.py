"""A small stand-in for the Hugging Face Hub on loopback: model repositories in memory, LFS and Xet uploads.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "push.py"], env=hub.env(tmp_path))

With xet=True the write token sends hf_xet to a folder in place of a server. Every request is in `hub.log` as (method,
path, status). Only what the tests' clients ask for is here.
"""

import base64
import fnmatch
import hashlib
import json
import os
import re
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import ModelCard

LFS = ("*.safetensors", "*.onnx", "*.png", "*.bin", "*.pt")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS).encode()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class File:
    """One file at one commit: bytes in git, or known by its sha256 in LFS or Xet."""

    def __init__(self, path, *, data=None, sha256=None, size=None, xet_hash=None):
        self.path, self.data, self.sha256, self.xet_hash = path, data, sha256, xet_hash
        self.size = len(data) if data is not None else size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {self.size}\n".encode()
        self.oid = git_sha1(data if data is not None else pointer)

    def described(self):
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.sha256 else {}
        xet = {"xetHash": self.xet_hash} if self.xet_hash else {}
        return {"type": "file", "path": self.path, "size": self.size, "oid": self.oid, **lfs, **xet}


class Repository:
    def __init__(self, repo_id, private):
        self.repo_id, self.private, self.commits, self.refs = repo_id, private, {}, {}
        self.commit("main", {".gitattributes": File(".gitattributes", data=GITATTRIBUTES)}, "initial commit")

    def commit(self, branch, files, title):
        sha = hashlib.sha1(f"{self.repo_id}{branch}{title}{time.time_ns()}".encode()).hexdigest()
        self.commits[sha] = {"files": files, "title": title, "parent": self.refs.get(branch)}
        self.refs[branch] = sha
        return sha

    def files(self, branch="main"):
        """path -> File at the head of a branch, without .gitattributes."""
        there = self.commits[self.refs[branch]]["files"]
        return {path: file for path, file in there.items() if path != ".gitattributes"}


class Refusal(Exception):
    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code

    @property
    def headers(self):
        return {"X-Error-Message": self.message} | ({"X-Error-Code": self.code} if self.code else {})


ROUTES = []


def route(method, pattern):
    expression = re.compile("^" + pattern.replace("{repo}", r"(?P<repo>[^/]+/[^/]+|[^/]+)") + "$")

    def register(function):
        ROUTES.append((method, expression, function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status=200, body=b"", headers=None, kind="application/json"):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.status = status
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.status = 500
        if self.hub.cut and re.search(self.hub.cut, url.path):  # the connection breaks in the middle of the request
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 1)))
            self.hub.log.append((self.command, url.path, None))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if refusal := self.hub.refusal_of(url.path):
            self.reply(refusal.status, {"error": refusal.message}, refusal.headers)
            self.hub.log.append((self.command, url.path, self.status))
            return
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, expression, function in ROUTES:
                if verb == method and (match := expression.match(url.path)):
                    arguments = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    with self.hub.lock:
                        function(self, **arguments)
                    break
            else:
                raise Refusal(404, f"no route for {self.command} {url.path}")
        except Refusal as refusal:
            self.reply(refusal.status, {"error": refusal.message}, refusal.headers)
        finally:
            self.hub.log.append((self.command, url.path, self.status))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # who may do what

    @property
    def user(self):
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def need_write(self, repo_id):
        if not self.user:
            raise Refusal(401, "Invalid username or password.")
        if repo_id.split("/")[0] not in (self.user, "org"):
            raise Refusal(403, "You don't have the rights to write under this namespace")

    def repository(self, repo_id):
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and not self.user):
            # as the real Hub: 401, not 404, to callers without a token, so that private names stay secret
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return found

    def at(self, repository, revision):
        revision = unquote(revision)
        sha = repository.refs.get(revision) or (revision if revision in repository.commits else None)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repository.commits[sha]["files"]

    @route("GET", "/api/whoami-v2")
    def who(self):
        if not self.user:
            raise Refusal(401, "Invalid username or password.")
        self.reply(200, {"name": self.user, "type": "user", "orgs": [{"name": "org"}]})

    @route("POST", "/api/repos/create")
    def create(self):
        wish = json.loads(self.body)
        repo_id = f"{wish.get('organization') or self.user}/{wish['name']}"
        self.need_write(repo_id)
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": "0" * 24}
        if repo_id in self.hub.repositories:
            return self.reply(409, {"error": "You already created this model repo", **answer})
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository(repo_id, private)
        self.reply(200, answer)

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        ModelCard(json.loads(self.body)["content"])  # raises where the metadata cannot be read
        self.reply(200, {"errors": [], "warnings": []})

    # writing

    @route("POST", "/api/models/{repo}/preupload/(?P<revision>.+)")
    def preupload(self, repo, revision):
        self.need_write(repo)
        _, files = self.at(self.repository(repo), revision)
        answers = []
        for wish in json.loads(self.body)["files"]:
            large = any(fnmatch.fnmatch(wish["path"].split("/")[-1], pattern) for pattern in LFS)
            old = files.get(wish["path"])  # its oid lets the client leave out what has not changed
            known = {"oid": old.sha256 or old.oid} if old else {}
            mode = "lfs" if large else "regular"
            answers.append({"path": wish["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.reply(200, {"files": answers})

    @route("POST", r"/{repo}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo):
        self.need_write(repo)
        objects = []
        for wish in json.loads(self.body)["objects"]:
            place = f"{self.hub.url}/_lfs/{wish['oid']}"
            actions = {"actions": {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}}
            there = self.hub.blob(wish["oid"]).exists()
            objects.append({"oid": wish["oid"], "size": wish["size"], **({} if there else actions)})
        self.reply(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    @route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "sha256 mismatch")
        self.hub.blob(oid).write_bytes(self.body)
        self.reply(200, {})

    @route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})/verify")
    def lfs_verify(self, oid):
        self.reply(200 if self.hub.blob(oid).exists() else 404, {})

    @route("GET", "/api/models/{repo}/xet-(?P<kind>read|write)-token/(?P<revision>.+)")
    def xet_token(self, repo, kind, revision):
        if kind == "write":
            self.need_write(repo)
        self.repository(repo)
        expires = int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": self.hub.cas_url, "X-Xet-Access-Token": "xet-token"}
        body = {"casUrl": self.hub.cas_url, "accessToken": "xet-token", "exp": expires}
        self.reply(200, body, {**headers, "X-Xet-Token-Expiration": str(expires)})

    @route("POST", "/api/models/{repo}/commit/(?P<revision>.+)")
    def commit(self, repo, revision):
        self.need_write(repo)
        repository = self.repository(repo)
        sha, files = self.at(repository, revision)
        files, head = dict(files), {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                head = value
                if value.get("parentCommit") and value["parentCommit"] != sha:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = File(value["path"], data=base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                oid, xet = value["oid"], self.hub.xet_hash_of(value["oid"])
                if not xet and not self.hub.blob(oid).exists():
                    raise Refusal(400, f"{value['path']} points at an object that was never uploaded")
                size = value.get("size") or self.hub.blob(oid).stat().st_size
                files[value["path"]] = File(value["path"], sha256=oid, size=size, xet_hash=xet)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        pull_request = f"refs/pr/{len(repository.refs)}" if self.query.get("create_pr") else None
        if pull_request:
            repository.refs[pull_request] = sha
        new = repository.commit(pull_request or unquote(revision), files, head.get("summary", ""))
        answer = {"success": True, "commitOid": new, "commitUrl": f"{self.hub.url}/{repo}/commit/{new}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{pull_request.rsplit('/', 1)[1]}"
        self.reply(200, answer)

    @route("POST", "/api/models/{repo}/branch/(?P<name>.+)")
    def make_branch(self, repo, name):
        self.need_write(repo)
        refs = self.repository(repo).refs
        refs[name] = refs["main"]
        self.reply(200, {})

    # reading

    @route("GET", "/api/models/{repo}/refs")
    def refs(self, repo):
        refs = self.repository(repo).refs.items()
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in refs]
        self.reply(200, {"branches": branches, "tags": [], "converts": []})

    @route("GET", "/api/models/{repo}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?")
    def tree(self, repo, revision, path):
        _, files = self.at(self.repository(repo), revision)
        there = [file for name, file in sorted(files.items()) if not path or name.startswith(path.rstrip("/") + "/")]
        if path and not there:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        self.reply(200, [file.described() for file in there])

    @route("GET", "/api/models/{repo}/revision/(?P<revision>.+)")
    def info(self, repo, revision):
        repository = self.repository(repo)
        sha, files = self.at(repository, revision)
        siblings = [{"rfilename": path} for path in files]
        self.reply(200, {"id": repo, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings})

    @route("GET", "/api/models/{repo}")
    def info_of_main(self, repo):
        self.info(repo, "main")

    @route("GET", "/{repo}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo, revision, path):
        sha, files = self.at(self.repository(repo), revision)
        file, headers = files.get(path), {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file is None:
            refusal = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", **headers}
            return self.reply(404, {"error": "Entry not found"}, refusal)
        if not file.sha256:
            return self.send_data(file.data, {**headers, "ETag": f'"{file.oid}"'})
        place = f"{self.hub.cdn_url}/_cdn/{file.sha256}"
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "Location": place}
        if file.xet_hash:
            token = f"{self.hub.url}/api/models/{repo}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
        self.reply(302, b"", headers)

    @route("GET", "/_cdn/(?P<oid>[0-9a-f]{64})")
    def cdn(self, oid):
        self.send_data(self.hub.content(oid), {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_data(self, data, headers):
        self.reply(200, data, headers, "application/octet-stream")


class LoopbackHub:
    """The server.

    Attributes: `repositories` by id; `token` of the user "tester", who may write under "tester" and "org"; `cut`, an
    expression: requests whose path it finds lose their connection; `refusals`: pairs of an expression and the
    [`Refusal`] that such requests are answered with.
    """

    def __init__(self, root):
        self.root = Path(root)
        (self.root / "blobs").mkdir(parents=True)
        self.cas_url = f"local://{self.root / 'cas'}"
        self.token = "hf_" + "t" * 34
        self.tokens = {self.token: "tester"}
        self.repositories, self.log, self.lock, self.cut = {}, [], threading.RLock(), None
        self.refusals = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        # the CDN has another host name: clients stop at a redirect to another host, and follow one to the same
        self.url, self.cdn_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def env(self, home, *, xet=False, **more):
        """The environment of a client with an empty cache."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        ours = {
            "HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip
        return kept | ours | ({} if xet else {"HF_HUB_DISABLE_XET": "1"}) | more

    def refusal_of(self, path):
        return next((refusal for expression, refusal in self.refusals if re.search(expression, path)), None)

    def blob(self, sha256):
        return self.root / "blobs" / sha256

    def content(self, sha256):
        """The bytes of an LFS or Xet file."""
        path = self.blob(sha256)
        if not path.exists():
            import hf_xet

            repositories = self.repositories.values()
            versions = [files for r in repositories for c in r.commits.values() for files in c["files"].values()]
            file = next(f for f in versions if f.sha256 == sha256)
            with hf_xet.XetSession().new_file_download_group(endpoint=self.cas_url) as group:
                group.start_download_file(hf_xet.XetFileInfo(file.xet_hash, file.size), str(path))
        return path.read_bytes()

    def xet_hash_of(self, sha256):
        """The Xet hash of a file, from the shards that hf_xet wrote."""

        def text(raw):  # stored as four little-endian numbers, printed in hexadecimal
            return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))

        for shard in (self.root / "cas").rglob("*.mdb"):
            data, place = shard.read_bytes(), 48  # after the header
            while place + 48 <= len(data) and data[place : place + 32] != b"\xff" * 32:
                file_hash, (flags, count) = data[place : place + 32], struct.unpack_from("<II", data, place + 32)
                place += 48 * (1 + count * (2 if flags >> 31 & 1 else 1))
                if flags >> 30 & 1:
                    if text(data[place : place + 32]) == sha256:
                        return text(file_hash)
                    place += 48
        return None
