"Chapters in JupyterLab, in a real browser: Run All ends without error or noise, and what it shows is short."
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from browser import chromium
from lab import Lab

CHAPTERS = [path.stem for path in sorted((Path(__file__).resolve().parent.parent/'nbs').glob('*.ipynb'))]
FEW = '01_show', '06_history', '15e_panel'   # the others by `make soak`
LONGEST = 30                                 # lines of an output

pytestmark = [pytest.mark.skipif(not chromium(), reason='no chromium here'),
    pytest.mark.skipif(not find_spec('jupyterlab'), reason='no jupyterlab here: pip install -e .[dev]')]

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp('lab'))
    yield lab
    lab.close()

def faults(cell):
    "What a reader would stumble over in the outputs of a cell."
    for output in cell['outputs']:
        data, text = output.get('data', {}), ''.join(output.get('text', ''))
        if output['output_type'] == 'error': yield f'{output["ename"]}: {output["evalue"]}'
        if output.get('name') == 'stderr': yield f'noise: {text[:200]}'
        if re.search(r'\w*Warning\b', text): yield f'a warning: {text[:200]}'
        shown = text or ''.join(data.get('text/markdown', '' if data.keys() - {'text/plain'} else data.get('text/plain', '')))
        if (n := len(shown.splitlines())) > LONGEST: yield f'{n} lines: {shown[:100]}'

@pytest.mark.parametrize('name', [name for name in CHAPTERS if name in FEW or os.environ.get('ARLDM_SOAK')])
def test_run_all(lab, name):
    lab.open(f'{name}.ipynb')
    try: cells = lab.run_all(1200)
    finally: lab.shut()
    wrong = [f'{cell["id"]}: {fault}' for cell in cells for fault in faults(cell)]
    assert not wrong, '\n'.join(wrong)
    code = [cell for cell in cells if cell['kind'] == 'code' and cell['text'].strip()]
    assert code and all(cell['count'] for cell in code)
