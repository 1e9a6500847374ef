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
    started = ' '.join(f.read_text() for f in Path(f'/proc/{pid}/task').glob('*/children')).split()
    return [pid, *(p for child in started for p in family(int(child)))]

def kill(process): # all of it at once, with -9
    for pid in family(process.pid): os.kill(pid, signal.SIGKILL)
    process.communicate()

def fork(work):
    "Start `work()` in a process of its own; -> its id, and a file of what it says."
    said = tempfile.TemporaryFile('w+')
    if pid := os.fork(): return pid, said
    code = 70
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler), signal.alarm(120)
        sys.stdout = sys.stderr = said
        warnings.simplefilter('ignore', DeprecationWarning)     # pytest shows what a command does not
        work()
        code = 0
    except SystemExit as e: code = e.code
    except BaseException: traceback.print_exc(file=said)
    for t in threading.enumerate():                                 # as at the end of a command
        if t is not threading.current_thread() and not t.daemon: t.join()
    said.flush(), os._exit(code)

def end(pid, said): # -> its exit status, minus the signal that ended it; the lines that it said
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said.seek(0)
    return status, said.read().splitlines()

def at_change(k, sign):
    "Send this process a signal before its `k`-th change of the disk; half a picture's bytes are a change, too."
    count, lock, whole = itertools.count(1), threading.Lock(), Image.Image.save
    def change():
        with lock: now = next(count)
        if now == k: os.kill(os.getpid(), sign)
    def heard(event, args):
        if event in CHANGES or event == 'open' and 'w' in (args[1] or '') and isinstance(args[0], (str, Path)): change()
    def save(picture, path):
        whole(picture, png := io.BytesIO(), 'PNG')
        with open(path, 'wb') as f:
            f.write(png.getvalue()[:len(png.getvalue())//2])
            f.flush(), change()
            f.write(png.getvalue()[len(png.getvalue())//2:])
    Image.Image.save = save
    sys.addaudithook(heard)
