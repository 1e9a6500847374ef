"A small server that speaks the protocol of the Hugging Face Hub, as far as models are downloaded and pushed."
import base64, contextlib, hashlib, json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, hf_api


class Repo:
    "A repository: branch -> {file: bytes}."
    def __init__(self, files, gated=False):
        self.branches = {'main': files}
        self.gated = gated

    def files(self, revision):
        "The files of a branch or commit, or None."
        for branch, files in self.branches.items():
            if revision in (branch, commit(files)): return files


def commit(files):
    "A hash of 40 digits that changes with the files."
    digest = hashlib.sha1()
    for path, data in sorted(files.items()): digest.update(path.encode() + hashlib.sha1(data).digest())
    return digest.hexdigest()

def read_folder(folder):
    "{file: bytes} of a folder."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass

    def answer(self, data=b'', status=200, **headers):
        if not isinstance(data, bytes): data = json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data)

    def refuse(self, status, code): self.answer(b'', status, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self):
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get('Authorization')))
        if path == '/api/whoami-v2':
            role = {'Bearer hf_good': 'write', 'Bearer hf_read': 'read'}.get(self.headers.get('Authorization'))
            return self.answer(dict(name='me', auth=dict(accessToken=dict(role=role)))) if role else self.refuse(401, '')
        parts = path.strip('/').split('/')
        api = parts[:2] == ['api', 'models']
        if api: parts = parts[2:]
        repo, rest = hub.repos.get('/'.join(parts[:2])), parts[2:]
        if not repo: return self.refuse(404, 'RepoNotFound')
        files = repo.files(rest[1] if rest else 'main')
        if files is None: return self.refuse(404, 'RevisionNotFound')
        sha = commit(files)
        if not api: # /user/name/resolve/revision/file
            if repo.gated and self.headers.get('Authorization') != 'Bearer hf_good': return self.refuse(403, 'GatedRepo')
            data = files.get('/'.join(rest[2:]))
            if data is None: return self.refuse(404, 'EntryNotFound')
            return self.answer(data, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        if rest and rest[0] == 'tree':
            return self.answer([dict(type='file', path=name, size=len(data), oid=hashlib.sha1(data).hexdigest())
                                for name, data in sorted(files.items())])
        name = '/'.join(parts[:2])
        self.answer(dict(id=name, modelId=name, sha=sha, private=False, siblings=[dict(rfilename=f) for f in files]))

    do_HEAD = do_GET

    def do_POST(self):
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get('Authorization')))
        if path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        if self.headers.get('Authorization') != 'Bearer hf_good': return self.refuse(401, '')
        if path == '/api/repos/create':
            facts = json.loads(body)
            name = f"{facts['organization']}/{facts['name']}"
            known = name in hub.repos
            if not known: hub.repos[name] = Repo({})
            return self.answer(dict(url=f'{hub.url}/{name}'), 409 if known else 200)
        parts = path.split('/')    # '', api, models, user, name, preupload or commit, branch
        if parts[5] == 'preupload':
            return self.answer(dict(files=[dict(path=one['path'], uploadMode='regular', shouldIgnore=False)
                                           for one in json.loads(body)['files']]))
        files = hub.repos['/'.join(parts[3:5])].branches.setdefault(parts[6], {})
        for line in map(json.loads, body.splitlines()):
            if line['key'] == 'file': files[line['value']['path']] = base64.b64decode(line['value']['content'])
            else: hub.commits.append(line['value']['summary'])
        self.answer(dict(commitUrl=f"{hub.url}/{'/'.join(parts[3:5])}/commit/{commit(files)}", commitOid=commit(files), hookOutput=''))


class Hub:
    "What a test sees: `repos` name -> `Repo`; `requests` (method, path, token); `commits`, their messages."
    def __init__(self):
        self.repos, self.requests, self.commits = {}, [], []

    def paths(self, method='GET', word='resolve'):
        "Of the requests of one method, the paths that hold a word, without repository and revision."
        return [path.split('/', 5)[-1] for m, path, _ in self.requests if m == method and f'/{word}/' in path]


@contextlib.contextmanager
def serve(monkeypatch, cache):
    "Run a hub on this machine, to which huggingface_hub and diffusers speak within the block."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.hub = hub = Hub()
    hub.url = f'http://127.0.0.1:{server.server_address[1]}'
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True)
    thread.start()
    for name, value in dict(ENDPOINT=hub.url, HUGGINGFACE_CO_URL_HOME=hub.url, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE=False,
                            HUGGINGFACE_CO_URL_TEMPLATE=hub.url + '/{repo_id}/resolve/{revision}/{filename}').items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, 'endpoint', hub.url)
    try: yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
