"Chapters in JupyterLab, in a real browser: Run All ends without error or noise, and what it shows is short."
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from browser import chromium
from lab import Lab

NBS = Path(__file__).resolve().parent.parent/'nbs'
CHAPTERS = [path.relative_to(NBS).with_suffix('').as_posix() for path in sorted(NBS.rglob('[!.]*.ipynb'))]
LONGEST = 30                                 # lines of an output

pytestmark = [pytest.mark.skipif(os.environ.get('ARLDM_SOAK') != '1', reason='long: set ARLDM_SOAK=1'),
    pytest.mark.skipif(not chromium(), reason='no chromium here'),
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

def test_faults():
    def of(kind, **kw): return [*faults(dict(outputs=[dict(output_type=kind, **kw)]))]
    text = {'text/plain': 'x\n'*31, 'image/png': 'abc'}
    assert of('error', ename='KeyError', evalue='a') == ['KeyError: a']
    assert of('stream', name='stderr', text='so') == ['noise: so']
    assert of('stream', name='stdout', text='a UserWarning: b')[0].startswith('a warning')
    assert of('stream', name='stdout', text='x\n'*30) == of('display_data', data=text) == []
    assert of('stream', name='stdout', text='x\n'*31)[0].startswith('31 lines')
    assert of('execute_result', data={'text/markdown': '| a |\n'*32})[0].startswith('32 lines')

@pytest.mark.parametrize('name', CHAPTERS)
def test_run_all(lab, name):
    lab.open(f'{name}.ipynb')
    try: cells = lab.run_all(1200)
    finally: lab.shut()
    wrong = [f'{cell["id"]}: {fault}' for cell in cells for fault in faults(cell)]
    assert not wrong, '\n'.join(wrong)
    code = [cell for cell in cells if cell['kind'] == 'code' and cell['text'].strip()]
    assert code and all(cell['count'] for cell in code)
