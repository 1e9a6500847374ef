"A run folder of toy stories, its scores written by hand."
import random
from dataclasses import replace

from arldm.files.atomic import save_json
from arldm.toy.reader import read
from arldm.toy.figures import draw_scene
from arldm.toy.scene import COLOURS
from arldm.data.story import StoryFile, write_stories
from arldm.toy.corpus import toy_story

def telling(i): return replace(toy_story(i), album=f'a{i//2}')

def repaint(s, colour):
    "The scene with all its figures in one colour."
    figures = [replace(f, look=replace(f.look, colour=colour)) for f in s.figures]
    return replace(s, figures=tuple(figures))

def score_row(name, group, value, off, better, unit='', note='', **marks):
    "A row of `scores.json`, its interval `off` to either side; `marks` are what stands beside it."
    beside = [dict(what=what.replace('_', ' '), value=x, n=160) for what, x in marks.items()]
    return dict(name=name, group=group, value=value, low=value - off, high=value + off, n=320,
                better=better, unit=unit, beside=beside, spread=None, note=note)

def not_measured(name, network):
    return dict(name=name, group='pictures', value=None, n=0, better=None, beside=[],
                note=f'not measured: no weights of {network}')

def log_text(steps, rng):
    lines = ['step,loss,lr,grad_norm,stories_per_s,val_loss\n']
    for i in range(1, steps + 1):
        loss = .1 + 1/(i + 8)
        val_loss = loss if i % 50 == 0 else 'nan'
        lines.append(f'{i},{loss + .03*rng.random():.4f},0.001,0.5,3.2,{val_loss}\n')
    return ''.join(lines)

def write_run(run, wrong=.4, n=10, steps=300, seed=0):
    "A finished run: stories, drawings with wrong colours in some frames, a log, all scores."
    rng = random.Random(seed)
    run.mkdir(parents=True)
    splits = dict(test=map(telling, range(n)), train=map(telling, range(n, n + 4)))
    write_stories(run/'stories.h5', splits, 'toy')
    for i in range(n - 1):
        folder = run/'drawn'/f's{i}'
        folder.mkdir(parents=True)
        for k, s in enumerate(read(telling(i).pictures()), 1):
            if k > 1 and rng.random() < wrong: s = repaint(s, rng.choice(list(COLOURS)))
            draw_scene(s).save(folder/f'{k}.png')
    machine = dict(versions=dict(torch='2.13'), cpu='two cores')
    settings = dict(corpus='toy', task='visualization', data=str(run/'stories.h5'),
                    max_train_steps=steps, machine=machine)
    save_json(run/'settings.json', settings)
    (run/'log.csv').write_text(log_text(steps, rng))
    save_json(run/'scores.json', scores(run, wrong, n, rng))
    return run

def rows_of(run): return StoryFile(run/'stories.h5')['train'].rows(0)

def score_rows(wrong):
    return [
        score_row('FID64', 'pictures', 52.4 - 10*wrong, 2.8, 'lower',
                  note='as in the original: the test split only, 64 pixels',
                  train_against_test=21.3, half_against_half=30.9),
        dict(score_row('KID', 'pictures', .0123, .004, 'lower', train_against_test=-.0002),
             spread=.001),
        dict(name='FD-DINOv2', group='pictures', value=None, n=0, better=None, beside=[],
             note='invalid: the value is nan', invalid=True),
        not_measured('CMMD', 'clip'),
        not_measured('CLIP score', 'clip'),
        not_measured('FID', 'inception'),
        score_row('neighbouring frames alike (fields)', 'story', .93, .03, 'higher',
                  reference_frames=1., chance=.31),
        score_row('copies', 'story', .012, .011, 'lower', '%', reference_frames=.01),
        score_row('remembered facts', 'facts', 1 - wrong, .05, 'higher', '%', chance=.28),
        score_row('remembered facts, past shuffled', 'histories', .31, .04, None, '%',
                  own_past=1 - wrong)]

def frame_rows(wrong): # scores by the number of a frame
    def row(name, k, value, reference):
        return dict(name=name, k=k, value=value, low=value - .05, high=value + .05, n=64,
                    reference=reference)
    facts = [row('remembered facts', k, 1 - wrong*k/5, None) for k in range(2, 6)]
    similarity = 'similarity to the reference frame'
    return facts + [row(similarity, k, .9 - .3*wrong*k/5, .97) for k in range(1, 6)]

def fact_rows(wrong):
    return [
        dict(name='stated colour', value=.98, n=64, chance=.17, low=.96, high=1.),
        dict(name='remembered colour', value=1 - wrong, n=48, chance=.17, low=.9 - wrong, high=1.),
        dict(name='remembered place', value=.99, n=48, chance=None)]

def scores(run, wrong, n, rng):
    values = {f's{i}': round(rng.random(), 3) for i in range(n - 1)}
    copies = []
    for i, row in enumerate(rows_of(run)[:3]):
        copies.append(dict(story=f's{i}', k=2, similarity=.99 - i/50, picture=int(row)))
    return dict(format=2, split='test', data=str(run/'stories.h5'), n_stories=n - 1,
                n_albums=n//2, n_frames=5*(n - 1), seeds=1, resamples=100, date='2026-01-01',
                trouble=[f'1 of {n} stories of the split are not drawn, first s{n - 1}'],
                missing=[f's{n - 1}'], unknown=[], scores=score_rows(wrong),
                facts=fact_rows(wrong), frames=frame_rows(wrong),
                stories=dict(name='facts correct', better='higher', unit='%', values=values),
                copies=copies, copies_floor=dict(network='fields', similarity=.91, n=50))
