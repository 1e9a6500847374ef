"`make gpu`: every row runs on a CPU, a cut loses nothing, and a row that fails costs itself alone."
import itertools, json, os, shutil, signal, subprocess, time
from pathlib import Path

import pytest
import torch

from arldm.bench import gpu, gpu_tables as tables
from arldm.bench.budget import Measurements, Row, run_rows, start_worker
from arldm.core import ROOT, StoryError
from arldm.bench.gpu import measure_gpu, with_goal
from arldm.bench.gpu_tables import TABLES, tables_from, write_tables
from arldm.bench.gpu_rows import GOALS, gpu_rows
from arldm.bench.bench import bench
from processes import fork

def rows_of(folder): return json.loads((folder/'gpu.json').read_text())['rows']

def children(pid): return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]

def runs(pid):
    "Whether a process is there and no zombie."
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False

def wait_for(what, seconds=120):
    "Wait until `what()` is true, and return what it returned."
    end = time.time() + seconds
    while True:
        result = what()
        if result: return result
        assert time.time() < end, 'it took too long'
        time.sleep(.05)


# the whole command

@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    "`make gpu` on a CPU with the tiny model: the folder, and what was printed."
    if os.environ.get('ARLDM_SOAK') != '1': pytest.skip('measures every row, 90 seconds: set ARLDM_SOAK=1')
    out = tmp_path_factory.mktemp('gpu')
    # On a machine with other work to do a row takes many times as long; waiting costs nothing else.
    words = ['make', '-s', 'gpu', 'DEVICE=cpu', 'SIZE=tiny', 'MINUTES=15', f'OUT={out}', 'COMMIT=abc1234']
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert not said.returncode, said.stderr
    return out, said.stdout

def test_every_row_runs(measured):
    "On the CPU with the tiny model each row is measured, and none of them fails."
    out, said = measured
    result = json.loads((out/'gpu.json').read_text())
    assert {name: row.get('note') for name, row in result['rows'].items() if row['state'] != 'done'} == {}
    assert result['rows'].keys() == {row.name for row in gpu_rows('tiny')}
    for name, row in result['rows'].items():
        assert not row.get('note') and row['commit'] == 'abc1234' and row['date'], name
        assert with_goal(result['rows'], name), name
    assert 's/story' in said and 'stories/s' in said
    n = len(result['rows'])
    assert f'{n} rows to measure on a CPU, expected' in said and f'{n} rows are measured, 0 failed, 0 are left' in said

def test_each_group_has_one_process():
    "At the tiny size, where no row is more important than another."
    groups = [row.name.split(':')[0] for row in gpu_rows('tiny')]
    assert [name for name, _ in itertools.groupby(groups)] == ['check', 'draw', 'train']

def test_the_card_computes_the_same(measured):
    "On a CPU the smoke test compares two equal processes; the tests that need a card are skipped, the others pass."
    rows = rows_of(measured[0])
    smoke, tests = rows['check: the same as the CPU'], rows['check: pytest -m gpu']
    assert smoke['levels'] == smoke['loss'] == 0
    assert tests['failed'] == [] and tests['passed'] >= 8

def test_goes_on_after_a_kill(measured, tmp_path, monkeypatch, capsys):
    "What was measured before the kill is not measured again; what was cut and what is missing is."
    shutil.copy(measured[0]/'gpu.json', tmp_path)
    before = rows_of(tmp_path)
    *kept, cut, missing = before
    result = json.loads((tmp_path/'gpu.json').read_text())
    result['rows'][cut] = dict(state='running', date='2026-11-28', at=1., until=2.)
    del result['rows'][missing]
    (tmp_path/'gpu.json').write_text(json.dumps(result))
    def start(code, arguments, env):
        path, _, size, device, names, deadline, _ = arguments
        assert (size, device, names) == ('tiny', 'cpu', [cut, missing])
        return start_worker(WORKER, [path, [(name, .1) for name in names], deadline])
    monkeypatch.setattr(gpu, 'start_worker', start)
    measure_gpu(tmp_path, 1, 'cpu')
    after = rows_of(tmp_path)
    for name in kept: assert after[name] == before[name]
    assert all(after[name]['state'] == 'done' and after[name]['commit'] == 'abc' for name in (cut, missing))
    said = capsys.readouterr().out
    assert '2 rows to measure on a CPU, expected' in said
    assert f'{len(after)} rows are measured, 0 failed, 0 are left' in said

def test_tables_of_a_run(measured, capsys):
    "Its tables hold every timing, and no chapter is touched by what no GPU measured."
    before = {path: path.read_bytes() for path in (ROOT/'nbs').rglob('[!.]*.ipynb')}
    bench(tables=str(measured[0]/'gpu.json'))
    said = capsys.readouterr().out
    result = json.loads((measured[0]/'gpu.json').read_text())
    for name in result['rows']: assert with_goal(result['rows'], name) in said
    assert 'not measurements of a GPU' in said
    assert {path: path.read_bytes() for path in before} == before

def test_another_machine_is_refused(measured, tmp_path):
    "Timings of two machines do not go into one file; it stays as it was."
    shutil.copy(measured[0]/'gpu.json', tmp_path)
    result = json.loads((tmp_path/'gpu.json').read_text())
    result['machine']['versions']['torch'] = '1.0'
    (tmp_path/'gpu.json').write_text(json.dumps(result))
    with pytest.raises(StoryError, match=r'measured elsewhere: machine.versions.torch was 1.0, is .* now; name another'):
        measure_gpu(tmp_path, 1, 'cpu')
    with pytest.raises(StoryError, match='size was tiny, is full now'): measure_gpu(measured[0], 1, 'cpu', 'full')
    assert json.loads((tmp_path/'gpu.json').read_text()) == result


# single rows, by a process that imports little

WORKER = """
import os, time
from arldm.bench import budget
path, rows, deadline = budget.worker_arguments()
budget.MIN_TIME_LIMIT = 2.
def measure(name):
    if 'dies' in name: os.kill(os.getpid(), 9)
    if 'raises' in name: raise RuntimeError('CUDA error: an illegal memory access')
    if 'hangs' in name: time.sleep(100)
    if 'process' in name: return dict(process=os.getpid())
    if 'wrong' in name: return dict(levels=9., wrong=True, note='the device computes something else')
    return dict(stories_per_s=1., memory=float('nan'))
rows = [budget.Row(*row) for row in rows]
if 'never begins' not in rows[0].name: budget.measure_rows(budget.Measurements(path), rows, measure, deadline, 'abc')
"""

@pytest.fixture
def kept(tmp_path):
    kept = Measurements(tmp_path/'gpu.json')
    kept.open(dict(size='tiny', device='cpu', machine={}))
    return kept

def measured_rows(kept, names, seconds=60., expected=.1):
    "What `run_rows` makes of rows that do what their names say, each `expected` to take so many seconds."
    deadline = time.time() + seconds
    def start(rows): return start_worker(WORKER, [str(kept.path), [(row.name, row.seconds) for row in rows], deadline])
    run_rows(kept, [Row(name, expected) for name in names], deadline, start)
    return kept.rows()

def test_a_row_that_fails_costs_itself(kept):
    "An error, a wrong result, a dead process and one that hangs: each is noted, and the next row is measured."
    names = [f'a: {what}' for what in ('works', 'raises', 'wrong', 'dies', 'hangs', 'works again')]
    rows = measured_rows(kept, names)
    assert [*rows] == names
    assert [row['state'] for row in rows.values()] == ['done', 'failed', 'failed', 'failed', 'failed', 'done']
    notes = [row.get('note') for row in rows.values()]
    assert notes[1:4] == ['RuntimeError: CUDA error: an illegal memory access', 'the device computes something else',
                          'its process ended with code -9']
    assert notes[4].startswith('it was ended after 2 s')
    assert 'memory' not in rows['a: works']                          # no number, no entry

def test_a_kill_loses_nothing(kept):
    "Neither the rows that were done nor the file; nobody measures on behind its back, and the row that was cut is missing."
    names = ['a: works', 'a: process', 'a: hangs', 'a: works again']
    pid, _ = fork(lambda: measured_rows(kept, names, expected=10.))
    def worker_in_the_third_row():
        rows = kept.rows() if kept.path.exists() else {}
        return children(pid) if rows.get('a: hangs', {}).get('state') == 'running' else None
    try: [worker] = wait_for(worker_in_the_third_row)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    before = kept.rows()
    wait_for(lambda: not runs(worker), 20)
    assert [row['state'] for row in before.values()] == ['done', 'done', 'running']
    assert before['a: process']['process'] == worker
    assert kept.rows() == before
    assert kept.still_missing([Row(name, .1) for name in names]) == [Row(name, .1) for name in names[2:]]

def test_the_end_of_the_minutes(kept):
    "A row that is being measured then is cut, the others are skipped, and both say so."
    rows = measured_rows(kept, ['a: hangs', 'a: works', 'b: works'], 1.8)
    assert [row['state'] for row in rows.values()] == ['cut', 'skipped', 'skipped']
    assert rows['b: works']['note'].startswith('takes about 0 s, 0 s were left')

def test_a_process_that_never_begins(kept):
    "No endless loop: its rows fail."
    rows = measured_rows(kept, ['a: never begins', 'a: works', 'b: works'])
    assert [row['state'] for row in rows.values()] == ['failed', 'failed', 'done']
    assert rows['a: works']['note'] == 'its process ended at once, with code 0'

def test_what_failed_comes_last(kept):
    "Rows that were never tried are measured before those that failed or were cut."
    rows = [Row(f'a: {i}', 1.) for i in range(9)]
    for i, state in enumerate(('failed', 'cut', 'skipped', 'running', 'done', 'done')): kept.record(rows[i].name, state)
    before = kept.rows()
    assert [int(row.name[-1]) for row in kept.still_missing(rows)] == [1, 2, 3, 6, 7, 8, 0]
    assert kept.rows() == before

def test_an_error_ends_its_process(kept):
    "After an error that nobody foresaw the next row begins in a new process: a GPU may refuse everything in the old one."
    rows = measured_rows(kept, ['a: process', 'a: process again', 'a: raises', 'a: process at last'])
    first, second, _, last = (row.get('process') for row in rows.values())
    assert first == second != last

def test_a_gpu_that_is_gone(tmp_path, monkeypatch):
    "A worker for a GPU measures nothing on a CPU instead."
    words = [str(tmp_path/'gpu.json'), str(tmp_path), 'full', 'cuda', [], 0, 'abc']
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(gpu, 'worker_arguments', lambda: words)
    with pytest.raises(SystemExit, match='^the GPU is gone$'): gpu.gpu_worker()
    assert not list(tmp_path.iterdir())


# bad input

@pytest.mark.parametrize('how, message', [
    (dict(device='tpu'), 'no device'), (dict(size='huge'), 'no size'), (dict(minutes=0), 'minutes must be above 0'),
    (dict(minutes=float('nan')), 'minutes must be above 0')])
def test_refused(tmp_path, how, message):
    with pytest.raises(StoryError, match=message): measure_gpu(tmp_path/'gpu', **{'device': 'cpu', 'minutes': 1, **how})
    assert not (tmp_path/'gpu').exists()

@pytest.mark.parametrize('text', ['mine', '{"rows": []}', '{"format": "arldm-gpu", "size": "tiny"'])
def test_another_file_stays(tmp_path, text):
    "A file of somebody else, or one cut short, is refused and stays as it is."
    (tmp_path/'gpu.json').write_text(text)
    with pytest.raises(StoryError, match='gpu.json is there already and is not a file of measurements'):
        measure_gpu(tmp_path, 1, 'cpu')
    with pytest.raises(StoryError): tables_from(tmp_path/'gpu.json')
    assert (tmp_path/'gpu.json').read_text() == text

def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path/'runs').write_text('mine')
    with pytest.raises(StoryError, match='is a file, not a folder'): measure_gpu(tmp_path/'runs', 1, 'cpu')


# tables

def test_chapters_hold_what_was_measured(tmp_path):
    "The tables in the notebooks are what the committed measurements say, or empty if there are none."
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    known = tables.MEASURED
    result = json.loads(known.read_text()) if known.exists() else dict(size='full', device='cuda', rows={})
    assert write_tables(result, tmp_path/'nbs') == []
    marks = [name for name in TABLES for path in (ROOT/'nbs').rglob('[!.]*.ipynb')
             if f'"<!-- table: {name} -->' in path.read_text()]
    assert sorted(marks) == sorted(TABLES)

def test_a_gpu_fills_the_chapters(tmp_path, monkeypatch, capsys):
    "Measurements of a GPU at full size are kept and written; a second time changes nothing."
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    monkeypatch.setattr(tables, 'MEASURED', tmp_path/'docs/gpu.json')
    done = dict(state='done', date='2026-11-28', commit='abc1234', took=1.)
    rows = {'draw: dpm++ 20, graphs, 64 stories': dict(done, seconds=.111, memory=20.),
            'train: 256 px, baseline frozen, 8 stories': dict(done, stories_per_s=4., memory=12., flops=1e14),
            'train: 512 px, all trained, checkpointed': dict(done, note='out of memory'),
            'draw: pndm 50, plain, 1 story': dict(state='skipped', date='2026-11-28', note='takes about 30 s'),
            'check: pytest -m gpu': dict(state='failed', note='its process ended with code -9'),
            'draw: where the time goes': dict(state='skipped', date='2026-11-28', note='takes about 15 s')}
    about = dict(gpu='NVIDIA H200', cpu='x', card=dict(driver_version='600.1'), versions=dict(torch='2.11.0'))
    result = dict(format='arldm-gpu', size='full', device='cuda', machine=about, rows=rows)
    (tmp_path/'gpu.json').write_text(json.dumps(result))
    tables_from(tmp_path/'gpu.json', tmp_path/'nbs')
    assert 'gpu.json kept in' in capsys.readouterr().out
    speed, ssid = ((tmp_path/f'nbs/{name}.ipynb').read_text() for name in ('bench/89_speed', 'ssid'))
    assert 'takes about' not in speed + ssid                                # what was skipped is an empty cell
    assert '0.111 s/story, 20.0 GB (wanted: at most 0.12 s)' in speed and 'out of memory (wanted: at most 24 GB)' in speed
    assert 'NVIDIA H200, driver 600.1, torch 2.11.0, 2026-11-28, commit abc1234.' in speed
    assert '11.1 hours for 160,000 stories' in ssid and '1.3 minutes for 696 stories' in ssid
    assert write_tables(result, tmp_path/'nbs') == []
    assert json.loads((tmp_path/'docs/gpu.json').read_text()) == result
    del rows['draw: dpm++ 20, graphs, 64 stories']
    (tmp_path/'gpu.json').write_text(json.dumps(result))
    with pytest.raises(StoryError, match="has 1 row that this file lacks, such as 'draw: dpm"):
        tables_from(tmp_path/'gpu.json', tmp_path/'nbs')
    assert 'graphs, 64 stories' in (tmp_path/'docs/gpu.json').read_text()
    assert '0.111 s/story' in (tmp_path/'nbs/bench/89_speed.ipynb').read_text()

def test_goals_are_rows():
    names = {row.name.split(': ', 1)[1] for row in gpu_rows('full')}
    assert GOALS.keys() <= names

@pytest.mark.parametrize('name', TABLES)
def test_tables_show_rows(name, monkeypatch):
    "What the tables show is measured."
    shown = []
    for teller in 'with_goal', 'row_in_words': monkeypatch.setattr(tables, teller, lambda rows, name: shown.append(name) or '')
    monkeypatch.setattr('arldm.bench.gpu_rows.find_spec', lambda module: True)       # as if bitsandbytes were there
    known = {row.name for row in gpu_rows('full')}
    TABLES[name](dict(size='full', device='cuda', rows={}))
    assert shown and set(shown) <= known

def test_readme_shows_no_empty_cell():
    "What nobody measured is not in the README."
    for line in (ROOT/'README.md').read_text().splitlines():
        if line.startswith('| ') and not line.startswith('| |'): assert '| |' not in line, line
    assert 'not yet measured' not in (ROOT/'README.md').read_text()
