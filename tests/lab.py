"JupyterLab on a copy of the notebooks, driven in a browser as a reader would."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from browser import Browser

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {'notebook-extension/tracker': dict(windowingMode='none', autoStartDefaultKernel=True),
    'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False)}
SHOWN = '[...jupyterapp.shell.widgets("main")].find(w => w.context)'
CELLS = SHOWN + '''.content.widgets.map(c => ({kind: c.model.type, id: c.model.id,
    text: c.model.sharedModel.getSource(), count: c.model.executionCount ?? null, outputs: c.model.outputs ? c.model.outputs.toJSON() : []}))'''

class Lab:
    "A server on its own port and one tab that shows it."
    def __init__(self, folder):
        self.nbs, self.folder = folder/'nbs', folder
        shutil.copytree(ROOT/'nbs', self.nbs, ignore=shutil.ignore_patterns('.ipynb_checkpoints', 'runs'))
        shutil.copytree(ROOT/'tests', folder/'tests', ignore=shutil.ignore_patterns('__pycache__'))   # chapters read records there
        for name, of in SETTINGS.items():
            path = folder/'settings/@jupyterlab'/f'{name}.jupyterlab-settings'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(of))
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        env = {**os.environ, 'JUPYTERLAB_SETTINGS_DIR': str(folder/'settings'), 'OMP_NUM_THREADS': '1',
            **{f'JUPYTER_{k}_DIR': str(folder/k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}}
        root = ['--allow-root'] if os.geteuid() == 0 else []
        self.log = open(folder/'server.log', 'w')
        self.process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', f'--port={self.port}',
            '--ServerApp.token=t', '--LabApp.expose_app_in_browser=True', f'--ServerApp.root_dir={self.nbs}', *root],
            env=env, stdout=self.log, stderr=self.log, cwd=folder)
        self.wait(self._up, 60, 'the server')
        self.browser = Browser(folder/'profile')

    def _up(self):
        if self.process.poll() is not None: raise RuntimeError((self.folder/'server.log').read_text()[-2000:])
        try: return urllib.request.urlopen(f'http://127.0.0.1:{self.port}/api?token=t', timeout=5).status == 200
        except OSError: return False

    def wait(self, done, seconds, what):
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end: raise TimeoutError(f'{what}: not within {seconds} s')
            time.sleep(.3)

    def open(self, name, height=900):
        "Show a notebook, its kernel running."
        self.browser.open(f'http://127.0.0.1:{self.port}/lab/tree/{name}?token=t&reset', height=height)
        self.wait(lambda: self.js(f'window.jupyterapp && {SHOWN}?.context.isReady') and self._idle(), 90, name)
        self.js(f'jupyterapp.shell.activateById({SHOWN}.id); 0')

    def js(self, expression): return self.browser.js(expression)

    def _idle(self): return self.js(f'{SHOWN}.sessionContext.session?.kernel?.status == "idle"')

    def run_all(self, seconds=600):
        "Run > Run All Cells, to its end: the notebook's cells."
        self.js('window.ran = false; jupyterapp.commands.execute("notebook:run-all-cells").finally(() => window.ran = true); 0')
        self.wait(lambda: self.js('window.ran') and self._idle(), seconds, 'Run All')
        return self.cells()

    def cells(self): return json.loads(self.js(f'JSON.stringify({CELLS})'))

    def shut(self):
        "End the notebook's kernel."
        self.js(f'{SHOWN}.sessionContext.shutdown(); 0')
        self.browser.open('about:blank')

    def close(self):
        self.browser.close()
        self.process.terminate()
        try: self.process.wait(15)
        except subprocess.TimeoutExpired: self.process.kill()
        self.log.close()
