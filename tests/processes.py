"Processes that a test starts, stops and kills."
import io
import itertools
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

import torch
from PIL import Image

CHANGES = 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.chmod', 'shutil.rmtree'

def family(pid): # a process and all that it started; torchrun's workers have sessions of their own
    found = [pid]
    for file in Path(f'/proc/{pid}/task').glob('*/children'):
        for child in file.read_text().split(): found += family(int(child))
    return found

def kill(process): # all of it at once, with -9
    for pid in family(process.pid): os.kill(pid, signal.SIGKILL)
    process.communicate()

def fork(work):
    "Start `work()` in a process of its own; -> its id, and a file of what it says."
    said = tempfile.TemporaryFile('w+')
    pid = os.fork()
    if pid: return pid, said
    code = 70
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(120)
        sys.stdout = sys.stderr = said
        warnings.simplefilter('ignore', DeprecationWarning)     # pytest shows what a command does not
        work()
        code = 0
    except SystemExit as e: code = e.code
    except BaseException: traceback.print_exc(file=said)
    for t in threading.enumerate():                                 # as at the end of a command
        if t is not threading.current_thread() and not t.daemon: t.join()
    said.flush()
    os._exit(code)

def end(pid, said): # -> its exit status, minus the signal that ended it; the lines that it said
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said.seek(0)
    return status, said.read().splitlines()

def at_change(k, sign):
    "Signal this process before its `k`-th change of the disk; half a picture's bytes are one, too."
    count, lock = itertools.count(1), threading.Lock()
    save_whole = Image.Image.save
    def change():
        with lock: now = next(count)
        if now == k: os.kill(os.getpid(), sign)
    def heard(event, args):
        if event == 'open':
            path, mode, _ = args
            if 'w' in (mode or '') and isinstance(path, (str, Path)): change()
        elif event in CHANGES: change()
    def save(picture, path):
        png = io.BytesIO()
        save_whole(picture, png, 'PNG')
        data = png.getvalue()
        half = len(data)//2
        with open(path, 'wb') as f:
            f.write(data[:half])
            f.flush()
            change()
            f.write(data[half:])
    Image.Image.save = save
    sys.addaudithook(heard)
