"A run folder of toy stories, its scores written by hand."
import random
from dataclasses import replace

from arldm.files.atomic import save_json
from arldm.toy.facts import read
from arldm.toy.scene import COLOURS, draw_scene
from arldm.data.story import StoryFile, write_stories
from arldm.toy.corpus import toy_story

def telling(i): return replace(toy_story(i), album=f'a{i//2}')

def repaint(s, colour): return replace(s, figures=tuple(replace(f, look=replace(f.look, colour=colour)) for f in s.figures))

def beside(**values): return [dict(what=what.replace('_', ' '), value=value, n=160) for what, value in values.items()]

def score_row(name, group, value, off, better, unit='', note='', **marks):
    return dict(name=name, group=group, value=value, low=value - off, high=value + off, n=320, better=better, unit=unit,
        beside=beside(**marks), spread=None, note=note)

def write_run(run, wrong=.4, n=10, steps=300, seed=0):
    "A finished run: stories, drawings that get the colour wrong in some frames, a log, scores of every kind."
    rng = random.Random(seed)
    run.mkdir(parents=True)
    write_stories(run/'stories.h5', dict(test=map(telling, range(n)), train=map(telling, range(n, n + 4))), 'toy')
    for i in range(n - 1):
        (folder := run/'drawn'/f's{i}').mkdir(parents=True)
        for k, s in enumerate(read(telling(i).pictures()), 1):
            if k > 1 and rng.random() < wrong: s = repaint(s, rng.choice(list(COLOURS)))
            draw_scene(s).save(folder/f'{k}.png')
    save_json(run/'settings.json', dict(corpus='toy', task='visualization', data=str(run/'stories.h5'), max_train_steps=steps,
        machine=dict(versions=dict(torch='2.13'), cpu='two cores')))
    def line(i): return f'{i},{.1 + 1/(i + 8) + .03*rng.random():.4f},0.001,0.5,3.2,{.1 + 1/(i + 8) if i % 50 == 0 else "nan"}\n'
    (run/'log.csv').write_text('step,loss,lr,grad_norm,stories_per_s,val_loss\n' + ''.join(map(line, range(1, steps + 1))))
    save_json(run/'scores.json', scores(run, wrong, n, rng))
    return run

def rows_of(run): return StoryFile(run/'stories.h5')['train'].rows(0)

def scores(run, wrong, n, rng):
    rows = [
        score_row('FID64', 'pictures', 52.4 - 10*wrong, 2.8, 'lower', note='as in the original: the test split only, 64 pixels',
            train_against_test=21.3, half_against_half=30.9),
        dict(score_row('KID', 'pictures', .0123, .004, 'lower', train_against_test=-.0002), spread=.001),
        dict(name='FD-DINOv2', group='pictures', value=None, n=0, better=None, beside=[], note='invalid: came out as nan',
            invalid=True),
        *(dict(name=name, group='pictures', value=None, n=0, better=None, beside=[], note=f'not measured: no weights of {of}')
            for name, of in (('CMMD', 'clip'), ('CLIP score', 'clip'), ('FID', 'inception'))),
        score_row('neighbouring frames alike (fields)', 'story', .93, .03, 'higher', reference_frames=1., chance=.31),
        score_row('copies', 'story', .012, .011, 'lower', '%', reference_frames=.01),
        score_row('remembered facts', 'facts', 1 - wrong, .05, 'higher', '%', chance=.28),
        score_row('remembered facts, past shuffled', 'histories', .31, .04, None, '%', own_past=1 - wrong)]
    def drift(name, k, value, reference): return dict(name=name, k=k, value=value, low=value - .05, high=value + .05, n=64, reference=reference)
    return dict(format=2, split='test', data=str(run/'stories.h5'), n_stories=n - 1, n_albums=n//2, n_frames=5*(n - 1), seeds=1,
        resamples=100, date='2026-01-01', trouble=[f'1 of {n} stories of the split are not drawn, first s{n - 1}'],
        missing=[f's{n - 1}'], unknown=[], scores=rows,
        facts=[dict(name='stated colour', value=.98, n=64, chance=.17, low=.96, high=1.),
            dict(name='remembered colour', value=1 - wrong, n=48, chance=.17, low=.9 - wrong, high=1.), 
            dict(name='remembered place', value=.99, n=48, chance=None)],
        frames=[drift('remembered facts', k, 1 - wrong*k/5, None) for k in range(2, 6)]
            + [drift('similarity to the reference frame', k, .9 - .3*wrong*k/5, .97) for k in range(1, 6)],
        stories=dict(name='right facts', better='higher', values={f's{i}': round(rng.random(), 3) for i in range(n - 1)}),
        copies=[dict(story=f's{i}', k=2, similarity=.99 - i/50, picture=int(row)) for i, row in enumerate(rows_of(run)[:3])])
