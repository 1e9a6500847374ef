"A headless Chromium, spoken to over a pipe in its DevTools protocol."
import base64
import json
import os
import select
import shutil
import subprocess
import time

FLAGS = ('--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions '
    '--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars '
    '--remote-debugging-pipe').split()

def chromium(): return shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')

class Browser:
    "One tab; `heard` holds what happened in it since the last `open`. `flags`: more arguments of Chromium."
    def __init__(self, profile, *flags):
        (theirs_in, self.out), (self.into, theirs_out) = os.pipe(), os.pipe()
        def as_three_and_four():
            # copies first: `theirs_in` or `theirs_out` may themselves be 3 or 4
            a, b = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(a, 3)
            os.dup2(b, 4)
        self.process = subprocess.Popen([chromium(), *FLAGS, *flags, f'--user-data-dir={profile}', 'about:blank'],
            preexec_fn=as_three_and_four, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.n, self.rest = 0, b''
        self.heard, self.session = [], None
        tab = next(t for t in self.ask('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self.session = self.ask('Target.attachToTarget', targetId=tab['targetId'], flatten=True)['sessionId']
        for domain in 'Page', 'Runtime', 'Log', 'Network': self.ask(f'{domain}.enable')

    def read(self, seconds=60):
        "The next message."
        end = time.monotonic() + seconds
        while b'\0' not in self.rest:
            if not select.select([self.into], [], [], max(0, end - time.monotonic()))[0]: raise TimeoutError('Chromium is silent')
            if not (more := os.read(self.into, 1 << 20)): raise EOFError('Chromium has ended')
            self.rest += more
        one, self.rest = self.rest.split(b'\0', 1)
        return json.loads(one)

    def ask(self, method, **params):
        self.n += 1
        message = dict(id=self.n, method=method, params=params)
        if self.session: message['sessionId'] = self.session
        data = json.dumps(message).encode() + b'\0'
        while data: data = data[os.write(self.out, data):]
        said = self.read()
        while said.get('id') != self.n:
            self.heard.append(said)
            said = self.read()
        if 'error' in said: raise RuntimeError(f'{method}: {said["error"]["message"]}')
        return said['result']

    def open(self, path, width=1400, dark=False, height=900):
        "Show a file, or a page by its address, at a width, light or dark."
        self.ask('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.ask('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')])
        self.heard = []
        self.ask('Page.navigate', url=path if isinstance(path, str) else path.as_uri())
        while not any(m.get('method') == 'Page.loadEventFired' for m in self.heard): self.heard.append(self.read())

    def js(self, expression):
        said = self.ask('Runtime.evaluate', expression=expression, returnByValue=True)
        if 'exceptionDetails' in said: raise RuntimeError(said['exceptionDetails']['exception']['description'])
        return said['result'].get('value')

    def events(self, method): return [m['params'] for m in self.heard if m.get('method') == method]

    def shot(self, path):
        "The whole page as a PNG."
        size = self.ask('Page.getLayoutMetrics')['cssContentSize']
        clip = dict(x=0, y=0, width=size['width'], height=size['height'], scale=1)
        path.write_bytes(base64.b64decode(self.ask('Page.captureScreenshot', captureBeyondViewport=True, clip=clip)['data']))

    def close(self):
        try: self.ask('Browser.close')
        except (EOFError, OSError): pass
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill()
        os.close(self.out)
        os.close(self.into)
