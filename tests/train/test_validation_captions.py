"Strips of one's own captions: drawn at every checkpoint, checked before training, without influence on it."
import warnings

import pytest

from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.report.report import training_strips
from arldm.toy import corpus as toy
from arldm.train.checkpoint import read_log

HOW = dict(preset='tiny', resolution=16, train_batch_size=2, max_train_steps=1, checkpointing_steps=1, num_validation_stories=1)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    toy.write_toy(folder/'raw', (4, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'toy.h5', quiet=True)
    return folder/'toy.h5'

def losses(run): return [r['loss'] for r in read_log(run/'log.csv')]

def pictures(run): return {str(p.relative_to(run/'strips')): p.read_bytes() for p in (run/'strips').rglob('*.png')}

def test_own_captions(data, tmp_path):
    "They are drawn beside the validation stories, and change neither these nor the training; a resumed run may draw others."
    train(tmp_path/'plain', data=data, **HOW)
    (tmp_path/'a.txt').write_text('a big red star is at the beach on the left\n\nit jumps\n')
    (tmp_path/'b.txt').write_text('it jumps\n')
    run = tmp_path/'run'
    train(run, data=data, **HOW, validation_captions=f'{tmp_path}/a.txt, {tmp_path}/b.txt')
    assert losses(run) == losses(tmp_path/'plain')
    drawn, plain = pictures(run), pictures(tmp_path/'plain')
    assert drawn.keys() - plain.keys() == {'captions/000001-a.png', 'captions/000001-b.png'}
    assert {name: drawn[name] for name in plain} == plain
    assert len(training_strips(run)) == len(plain)   # the report shows those that have a reference
    (tmp_path/'a.txt').write_text('it jumps\n')
    train(run, **{**HOW, 'max_train_steps': 2}, validation_captions=f'{tmp_path}/a.txt')
    assert pictures(run).keys() - drawn.keys() == {'000002-4.png', 'captions/000002-a.png'}

def test_long_story(data, tmp_path):
    "A note before the training."
    (tmp_path/'long.txt').write_text('it jumps\n'*7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        train(tmp_path/'run', data=data, **HOW, validation_captions=f'{tmp_path}/long.txt', dry_run=True)
    said = [str(w.message) for w in caught]
    assert ('long has 7 frames, more than the 5 of which the model remembers all but the last; its last frames forget '
            'earlier ones') in said and not (tmp_path/'run').exists()
    assert any("does not know: jumps" in line for line in said)

def test_bad_captions(data, tmp_path):
    "One line each, before anything is written."
    for folder in 'x', 'y': (tmp_path/folder).mkdir()
    for name in 'x/a.txt', 'y/a.txt': (tmp_path/name).write_text('it jumps')
    (tmp_path/'empty.txt').write_text('\n \n')
    def said(paths, **options):
        with pytest.raises(StoryError) as e: train(tmp_path/'run', data=data, **HOW, **options, validation_captions=paths)
        assert not (tmp_path/'run').exists()
        return str(e.value)
    assert said(f'{tmp_path}/none.txt') == f'{tmp_path}/none.txt: not a text file that can be read; expected one caption a line'
    assert said(f'{tmp_path}/empty.txt') == f'{tmp_path}/empty.txt: no captions in it; expected one a line'
    assert said(f'{tmp_path}/x/a.txt,') == (
        f'--validation-captions {tmp_path}/x/a.txt,: a name is empty; expected names with commas between them')
    assert said(f'{tmp_path}/x/a.txt,{tmp_path}/y/a.txt') == (
        '--validation-captions: two files have the name a, which their strips would share; rename one')
    assert said(f'{tmp_path}/x/a.txt', task='continuation') == (
        '--validation-captions draws from captions alone, but for continuation the first frame is given; leave it out, '
        'validation stories are drawn anyway')
