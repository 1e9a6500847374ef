"What a process that a test starts finds: this repository, then what the test itself was given."
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
given = os.environ.get('PYTHONPATH')   # libraries may lie there and nowhere else
PYTHONPATH = os.pathsep.join([str(ROOT), given]) if given else str(ROOT)
