"Drawings in the layouts of other programs: the same pictures are scored equal, and what is not clear is refused."
import json, os, shutil
from dataclasses import replace

import pytest
from PIL import Image

from arldm.cli.report import report
from arldm.cli.score import score
from arldm.core import StoryError
from arldm.draw.layouts import LAYOUTS, find_drawings
from arldm.draw.matching import match_drawings, match_table
from arldm.files.grids import Panel
from arldm.files.pictures import decode
from arldm.report.run_folder import read_run, run_warnings
from arldm.score.evaluate import evaluate
from painted import draw, painting, stories, story_file

NEW, OLD = '20250429-235959', '20241231_000000'
IDS = ['01', '02', '03', '04', '05', '06']

@pytest.fixture(scope='module')
def split(tmp_path_factory):
    "Six stories named as ViStoryBench's, of three frames."
    told = [replace(story, id=id) for id, story in zip(IDS, stories(3, 2, 3))]
    return story_file(tmp_path_factory.mktemp('stories'), test=told, train=list(stories(4, start=50)), val=[])['test']

@pytest.fixture(scope='module')
def ours(tmp_path_factory, split):
    draw(top := tmp_path_factory.mktemp('drawings')/'ours', split)
    return top

def frames(ours):
    "(story, k, file) of our drawings."
    return [(p.parent.name, int(p.stem), p) for p in sorted(ours.glob('*/*.png'))]

def save(ours, top, form, first=1, suffix='.png', skip=lambda story, k: False):
    "Save our drawings in another layout; `form` has {s} and {k}."
    for s, k, path in frames(ours):
        if skip(s, k): continue
        to = top/(form.format(s=s, k=k - 1 + first) + suffix)
        to.parent.mkdir(parents=True, exist_ok=True)
        if suffix == '.png': shutil.copy(path, to)
        else: Image.open(path).save(to, lossless=True)    # the same pixels
    return top

def save_grids(ours, top, rows, columns, form='{s}', n=3):
    for s in IDS:
        grid = Image.new('RGB', (32*columns, 32*rows))
        for k in range(n): grid.paste(Image.open(ours/s/f'{k + 1}.png'), (32*(k % columns), 32*(k//columns)))
        to = top/(form.format(s=s) + '.png')
        to.parent.mkdir(parents=True, exist_ok=True)
        grid.save(to)
    return top

def tree(folder): return {p.relative_to(folder).as_posix(): p.is_file() and p.read_bytes() for p in folder.rglob('*')}

def one_line(f, *args, **options):
    with pytest.raises(StoryError) as e: f(*args, **options)
    assert '\n' not in str(e.value)
    return str(e.value)

def pixels(d): return [decode(d.read(i)).tobytes() for i in range(len(d))]


# the same pictures, the same scores

FORMS = {
    'vistory': (f'uno/base/en/{NEW}/shots/{{s}}/shot_{{k:02}}', {}),
    'vistory, its README, from 0': (f'uno/base/en/{NEW}/shots/{{s}}/{{k:02}}', dict(first=0)),
    'vistory, its reader': (f'uno/en/base/{NEW}/{{s}}/shots/{{k:02}}', dict(first=0)),
    'vistory, no shots': (f'uno/base/en/{NEW}/{{s}}/shot_{{k:02}}', {}),
    'vistory, two timestamps': (f'uno/base/en/{NEW}/{{s}}/{OLD}/shot_{{k:02}}', {}),
    'vistory, the timestamp named': ('{s}/shots/shot_{k}', {}),
    'storydiffusion': (f'{{s}}/{NEW}/image_{{k}}', dict(first=0)),
    'storydiffusion of vistory': (f'storydiffusion/original/ViStory_en/{{s}}/Comic book/{NEW}/image_{{k}}', dict(first=0)),
    'storygen of vistory': ('generated_stories_en/story_{s}/shot_{k:02}', {}),
    'storygen with its time': ('generated_stories_en/story_{s}_250429-235959/shot_{k:02}', {}),
    'storygen for its metrics': ('{s}_{k}', {}),
    'flat': ('{s}-{k:03}', dict(first=0)),
    'webp': ('{s}/{k}', dict(suffix='.webp')),
    'names': ('out/test/{s}/frame{k}', dict(first=0))}

@pytest.mark.parametrize('name', FORMS)
def test_other_layouts_are_read_as_ours(name, tmp_path, split, ours):
    form, options = FORMS[name]
    top = save(ours, tmp_path/'theirs', form, **options)
    got, want = match_drawings(top, split), match_drawings(ours, split)
    assert len(got) == 18 and pixels(got) == pixels(want)
    assert got.story.tolist() == want.story.tolist() and got.k.tolist() == want.k.tolist()
    assert any('numbered from 0' in line for line in got.trouble) == (options.get('first') == 0)
    assert not got.missing and not got.unknown and not got.found.left_out
    assert len(got.trouble) == (options.get('first') == 0)

def scores_of(folder, split, **options):
    return evaluate(folder, split, n_resamples=5, train=4, **options)

def test_scores_are_equal_and_theirs_stay_as_they_were(tmp_path, split, ours):
    want = scores_of(ours, split)
    for name in 'vistory, its reader', 'storydiffusion', 'storygen of vistory', 'flat':
        form, options = FORMS[name]
        top = save(ours, tmp_path/name, form, **options)
        before = tree(top)
        assert scores_of(top, split)['scores'] == want['scores']
        assert tree(top) == before
    top = save_grids(ours, tmp_path/'strips', 1, 3)
    got = scores_of(top, split, drawings=match_drawings(top, split, grid='1x3'))
    assert got['scores'] == want['scores'] and len(tree(top)) == 6

@pytest.mark.parametrize('rows, columns, form', [(1, 3, '{s}'), (3, 1, '{s}'), (2, 2, '{s}'), (2, 2, 'pages/{s}/comic')])
def test_grids_are_cut(rows, columns, form, tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'grids', rows, columns, form)
    got = match_drawings(top, split, grid=f'{rows}x{columns}')
    assert pixels(got) == pixels(match_drawings(ours, split))
    assert f'6 pictures cut into {rows}x{columns} panels, the first of 32×32 pixels' in got.trouble
    blanks = [line for line in got.trouble if 'blank' in line]
    assert blanks == (['6 blank panels at the end of grids left out, first ' + ('comic' if '/' in form else '01') + '.png[4]'] if rows*columns == 4 else [])

def test_a_table_names_the_rest(tmp_path, split, ours):
    top = save(ours, tmp_path/'seeds', 'x/{s}{k}_output')
    lines = ['file_name;story_id;frame'] + [f'x/{s}{k}_output.png;{s};{k - 1}' for s, k, _ in frames(ours)]
    (tmp_path/'names.csv').write_text('\n'.join(lines))
    painting(1).save(top/'other.png')
    got = match_drawings(top, split, table=tmp_path/'names.csv')
    assert pixels(got) == pixels(match_drawings(ours, split))
    assert '1 picture among the drawings is not in the table and left out, first other.png' in got.trouble

def test_a_table_names_folders_and_grids(tmp_path, split, ours):
    times = {s: f'2025042{i}-000000' for i, s in enumerate(IDS)}
    for s in IDS: shutil.copytree(ours/s, tmp_path/'results'/times[s])
    for path in (tmp_path/'results').rglob('*.png'): path.rename(path.with_name(f'image_{int(path.stem) - 1}.png'))
    said = one_line(match_drawings, tmp_path/'results', split)
    assert 'holds none of the 6 stories' in said and 'found 20250420-000000' in said and said.endswith('say which stories these are with --map')
    (tmp_path/'names.csv').write_text('file_name,story_id\n' + '\n'.join(f'{times[s]},{s}' for s in IDS))
    want = pixels(match_drawings(ours, split))
    assert pixels(match_drawings(tmp_path/'results', split, table=tmp_path/'names.csv')) == want
    top = save_grids(ours, tmp_path/'grids', 1, 3, 'page-{s}')
    (tmp_path/'names.csv').write_text('file_name,story_id\n' + '\n'.join(f'page-{s}.png,{s}' for s in IDS))
    assert pixels(match_drawings(top, split, grid='1x3', table=tmp_path/'names.csv')) == want

@pytest.mark.parametrize('row, words', [
    ('no.png,01,1', 'holds no picture no.png, nor a folder'), ('01-1.png,01,first', 'frame first, expected the number'),
    ('01-1.png,01,', 'frame missing, expected the number'), ('01-1.png,,1', 'line 2: expected columns file_name, story_id and frame'),
    ('01-1.png,01,2\n01-2.png,01,2', 'are both frame 2 of story 01')])
def test_bad_tables(row, words, tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}-{k}')
    (tmp_path/'names.csv').write_text(f'file_name,story_id,frame\n{row}\n')
    assert words in one_line(match_drawings, top, split, table=tmp_path/'names.csv')


# bad input

def test_what_was_matched_is_one_table(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', f'{NEW}/shots/{{s}}/shot_{{k}}', skip=lambda s, k: s == '06' or (s, k) == ('02', 2))
    shots = top/NEW/'shots'
    for name in '99/shot_1.png', '99/shot_2.png', '01/shot_4.png', '01/cover.png':
        (shots/name).parent.mkdir(exist_ok=True)
        painting(2, (32, 32)).save(shots/name)
    got = match_drawings(top, split)
    rows = [line.split() for line in match_table(got).splitlines()[2:]]
    assert rows == [['in', 'split', 'test', '6', '18'], ['matched', '5', '14'], ['missing', '1', '4', 'first', '06'], ['extra', '1', '3', 'first', '99'],
                    ['left', 'out', '1', 'first', f'{NEW}/shots/01/cover.png']]
    said = '\n'.join(got.trouble)
    for words in ('1 of 6 stories of the split is not drawn, first 06', '1 drawn story is not in the split and left out, first 99',
            f'1 drawn frame is more than its story has, left out, first {NEW}/shots/01/shot_4.png; story 01 has 3 frames',
            '1 frame of a drawn story is missing, first 02/2.png', f'left out, first {NEW}/shots/01/cover.png'): assert words in said
    assert len(got.trouble) == 5 and 'arldm-draw' not in said

def test_half_a_grid(tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'strips', 1, 3)
    Image.open(top/'02.png').crop((0, 0, 48, 32)).save(top/'02.png')
    said = one_line(match_drawings, top, split, grid='1x3')
    assert '1 of 6 pictures cannot be cut into 1x3 panels like the others, first 02.png: 48×32 pixels, but 01.png 96×32' in said
    Image.open(top/'02.png').crop((0, 0, 47, 32)).save(top/'02.png')
    assert 'first 02.png: 47×32 pixels' in one_line(match_drawings, top, split, grid='1x3')
    assert '5 of 6 pictures' not in one_line(match_drawings, top, split, grid='1x7') and 'cannot be cut' in one_line(match_drawings, top, split, grid='1x7')
    for grid in '5', '0x3', '1x', 'x3', '1x100', '1×3', '-1x3': assert 'expected rows x columns' in one_line(match_drawings, top, split, grid=grid)
    shutil.copy(top/'01.png', top/'02.png')
    (top/'03').mkdir()
    shutil.copy(top/'01.png', top/'03/page.png')
    assert '2 layouts in one folder' in one_line(match_drawings, top, split, grid='1x3')

def test_too_few_panels_are_missing_frames(tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'strips', 1, 2, n=2)
    got = match_drawings(top, split, grid='1x2')
    assert len(got) == 12 and any('6 frames of drawn stories are missing, first 01/3.png' in line for line in got.trouble)

def test_mixed_sizes_are_said(tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'strips', 1, 3)
    Image.open(top/'02.png').resize((192, 64)).save(top/'02.png')
    assert 'drawings have 2 sizes (15 of 32×32, 3 of 64×64); all are resized to 32 pixels' in match_drawings(top, split, grid='1x3').trouble

def test_two_layouts_in_one_folder(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', f'{NEW}/shots/{{s}}/shot_{{k}}', skip=lambda s, k: s == '01')
    save(ours, top, '{s}_{k}', skip=lambda s, k: s != '01')
    said = one_line(match_drawings, top, split)
    assert '2 layouts in one folder: 3 as <story>_<k>.png (first 01_1.png), 15 as <time>/shots/<story>/shot_<k>.png (first 20250429-235959/shots/02/shot_1.png)' in said
    shutil.copytree(ours, top, dirs_exist_ok=True)
    assert '3 layouts in one folder: 18 as <story>/<k>.png (first 01/1.png)' in one_line(match_drawings, top, split)

def test_the_newest_timestamp_is_taken(tmp_path, split, ours):
    top = tmp_path/'uno'
    save(ours, top, f'base/en/{NEW}/{{s}}/shots/shot_{{k}}')
    for s in IDS:
        for k in 1, 2, 3:
            path = top/'base/en'/OLD/s/'shots'/f'shot_{k}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            painting(k, (32, 32)).save(path)
    got = match_drawings(top, split)
    assert pixels(got) == pixels(match_drawings(ours, split)) and got.trouble == [f'2 timestamps in one folder: the newest, {NEW}, is taken, not {OLD}']
    top = save(ours, tmp_path/'sd', f'{{s}}/comic/{NEW}/image_{{k}}')
    save(ours, top, f'{{s}}/comic/{OLD}/image_{{k}}', skip=lambda s, k: s > '02')
    got = match_drawings(top, split)
    assert len(got) == 18 and got.trouble == [f'2 stories with several timestamps, the newest is taken, first 01: {NEW}']

def test_several_methods_languages_and_styles_are_named(tmp_path, split, ours):
    for method in 'uno/base/en', 'uno/base/ch', 'seedstory/base/en': save(ours, tmp_path/'outputs', f'{method}/{NEW}/{{s}}/shot_{{k}}')
    assert 'holds 3 folders of drawings: seedstory/base/en, uno/base/ch, uno/base/en; name one of them' in one_line(match_drawings, tmp_path/'outputs', split)
    assert len(match_drawings(tmp_path/'outputs/uno/base/ch', split)) == 18
    for style in 'comic', 'photo': save(ours, tmp_path/'styles', f'{{s}}/{style}/{NEW}/image_{{k}}')
    assert 'holds 2 folders of drawings: comic, photo' in one_line(match_drawings, tmp_path/'styles', split)

def test_two_numberings(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}_{k}', first=0, skip=lambda s, k: s == '03')
    save(ours, top, '{s}_{k}', skip=lambda s, k: s != '03')
    assert 'numbered from 0 in 5 stories, first 01, but from 1 in others, first 03; number all alike' in one_line(match_drawings, top, split)

def test_the_comic_page_of_storydiffusion_is_no_frame(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', f'{{s}}/{NEW}/image_{{k}}')
    for s in IDS: painting(7, (64, 64)).save(top/s/NEW/'image_0.png')
    got = match_drawings(top, split)
    assert pixels(got) == pixels(match_drawings(ours, split))
    assert got.trouble == [f'6 drawn frames are more than their stories have, left out, first 01/{NEW}/image_0.png; story 01 has 3 frames']

def test_a_frame_that_is_there_twice(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}/shot_{k}')
    shutil.copy(top/'02/shot_2.png', top/'02/shot_02.jpg')
    assert '02/shot_02.jpg and 02/shot_2.png are both frame 2 of story 02' in one_line(match_drawings, top, split)

def test_names_that_say_nothing(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}{k}_output')
    said = one_line(match_drawings, top, split)
    assert '18 pictures, none of them named by story and frame as <story>/<k>.png' in said and 'found 011_output.png' in said and '--map' in said

def test_broken_pictures_are_counted(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}/shot_{k}')
    (top/'02/shot_2.png').write_bytes((top/'02/shot_2.png').read_bytes()[:99])
    assert '1 of 18 drawings cannot be read, first' in one_line(match_drawings, top, split)
    grids = save_grids(ours, tmp_path/'grids', 1, 3)
    (grids/'02.png').write_bytes(b'')
    assert '02.png' in one_line(match_drawings, grids, split, grid='1x3')

def test_a_link_to_itself_ends(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}_{k}')
    (top/'loop').symlink_to(top)
    assert len(match_drawings(top, split)) == 18

@pytest.mark.parametrize('form', [f'{NEW}/shots/{{s}}/shot_{{k}}', f'{NEW}/{{s}}/shot_{{k}}', 'run/{s}/{k}'])
def test_a_link_to_the_newest_run_is_read_once(tmp_path, split, ours, form):
    top = save(ours, tmp_path/'theirs', form)
    (top/'latest').symlink_to(top/form.split('/')[0])
    assert pixels(match_drawings(top, split)) == pixels(match_drawings(ours, split))

def test_links_that_are_the_only_way_to_pictures_are_followed(tmp_path, split, ours):
    save(ours, tmp_path/'elsewhere', 'run/shots/{s}/shot_{k}')
    save(ours, top := tmp_path/'theirs', '.runs/3/shots/{s}/shot_{k}')
    (top/'latest').symlink_to(top/'.runs/3')
    for place in top, tmp_path/'elsewhere': assert len(match_drawings(place, split)) == 18
    shutil.rmtree(top)
    top.symlink_to(tmp_path/'elsewhere/run')
    assert len(match_drawings(top, split)) == 18

def test_the_same_pictures_for_two_stories(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', '{s}/shot_{k}', skip=lambda s, k: s == '02')
    (top/'02').symlink_to(top/'01')
    assert len(match_drawings(top, split)) == 18

@pytest.mark.parametrize('form', ['{s}/shot_{k}', '{s}_{k}', f'{NEW}/shots/{{s}}/shot_{{k}}'])
def test_accents_of_a_macs_archive(tmp_path, ours, form):
    "A Mac's archives write an accented letter as two characters; the story file has one."
    names = {id: f'Zo\u00eb {id}' for id in IDS}
    told = [replace(story, id=names[id]) for id, story in zip(IDS, stories(3, 2, 3))]
    accented = story_file(tmp_path, test=told, train=list(stories(4, start=50)), val=[])['test']
    top = tmp_path/'theirs'
    for s, k, path in frames(ours):
        to = top/(form.format(s=f'Zoe\u0308 {s}', k=k) + '.png')
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    drawings = match_drawings(top, accented)
    assert len(drawings) == 18 and not drawings.unknown
    rows = [f'{form.format(s=names[s], k=k)}.png,{names[s]},{k}' for s, k, _ in frames(ours)]
    (tmp_path/'map.csv').write_text('\n'.join(['file_name,story_id,frame', *rows]), encoding='utf-8')
    assert pixels(match_drawings(top, accented, table=tmp_path/'map.csv')) == pixels(drawings)


# where scores go

def run_score(folder, split, **options):
    return score(folder, data=split.file.path, resamples=5, train_pictures=0, **options)

def test_nothing_is_written_into_their_folder(tmp_path, split, ours, capsys):
    top = save(ours, tmp_path/'theirs', '{s}/shot_{k}')
    before = tree(top)
    got = run_score(top, split)
    said = capsys.readouterr().out
    assert said.index('matched') < said.index('keep the scores with --out FOLDER') < said.index('KID' if 'KID' in said else 'FD')
    run_score(top, split, dry_run=True)
    kept = run_score(top, split, out=tmp_path/'scores/theirs')
    assert tree(top) == before and kept['scores'] == got['scores'] == run_score(ours, split)['scores']
    assert sorted(os.listdir(tmp_path/'scores/theirs')) == ['resamples.json', 'scores.json']

def test_a_report_finds_the_pictures_again(tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'theirs', 1, 3)
    out = tmp_path/'scores'
    run_score(top, split, grid='1x3', out=out)
    before = tree(top)
    run = read_run(out)
    assert run.drawn['02'][3] == Panel((top/'02.png').resolve(), 2, 1, 3) and run_warnings(run, split) == run.scores['trouble']
    run_score(ours, split)
    assert 'not drawn' not in (page := report(out).read_text()) and 'unreadable' not in page and page.count('data:image') >= 36
    report(ours, out)
    assert tree(top) == before and (out/'against-ours.html').is_file()
    painting(3, (96, 32)).save(top/'02.png')
    [said] = [line for line in run_warnings(read_run(out), split) if 'not those that were scored' in line]
    assert said.endswith(f'score them again: arldm-score {top.resolve()} --out {out}')
    shutil.move(tmp_path, tmp_path.with_name(tmp_path.name + '-moved'))
    moved = tmp_path.with_name(tmp_path.name + '-moved')
    assert read_run(moved/'scores').drawn['01'][1].read_bytes()
    shutil.move(moved, tmp_path)
    data = json.loads((out/'scores.json').read_text())
    data['source']['sets'] = [{'01': {'x': 'a.png'}}]
    (out/'scores.json').write_text(json.dumps(data))
    assert 'source is damaged' in one_line(read_run, out)

def test_scores_of_other_drawings_stay(tmp_path, split, ours):
    theirs, flat = save(ours, tmp_path/'theirs', '{s}/shot_{k}'), save(ours, tmp_path/'flat', '{s}_{k}')
    run_score(theirs, split, out=tmp_path/'out')
    before = tree(tmp_path/'out')
    assert 'is the folder of other drawings' in one_line(run_score, flat, split, out=tmp_path/'out')
    run_score(ours, split)
    assert 'is the folder of other drawings' in one_line(run_score, flat, split, out=ours)
    shutil.copytree(ours, tmp_path/'run/drawn')
    assert 'is the folder of other drawings' in one_line(run_score, flat, split, out=tmp_path/'run')
    (tmp_path/'file').write_text('')
    assert 'is a file' in one_line(run_score, flat, split, out=tmp_path/'file')
    assert tree(tmp_path/'out') == before
    run_score(theirs, split, out=tmp_path/'out')    # its own, again
    run_score(flat, split, out=flat)                # asked for
    assert (flat/'scores.json').is_file() and read_run(flat).drawn['01'][1] == (flat/'01_1.png').resolve()

def test_every_layout_names_a_story_and_a_frame():
    for layout in LAYOUTS:
        path = layout.form
        for old, new in (('<story>', '07'), ('<k>', '3'), ('<time>', NEW), ('<style>', 'comic'), ('<name>', 'frame_')): path = path.replace(old, new)
        assert layout.match(path)['story'] == '07' and layout.match(path)['k'] == '3'

def test_an_unknown_folder_is_one_line(tmp_path):
    assert 'no such folder' in one_line(find_drawings, tmp_path/'nowhere', {})
    assert 'no drawings' in one_line(find_drawings, tmp_path, {})


# odd folders

def test_grids_of_unknown_stories_are_one_line(tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'strips', 1, 3, 'x{s}')
    said = one_line(match_drawings, top, split, grid='1x3')
    assert 'holds none of the 6 stories' in said and 'found x01, x02, x03, …; say which stories these are with --map' in said

def test_pictures_that_are_no_stories_do_not_stop_the_others(tmp_path, split, ours):
    "Two characters with the same number, beside stories; a cover, beside strips."
    top = save(ours, tmp_path/'theirs', '{s}/shot_{k}')
    (top/'characters').mkdir()
    for name in 'ada_1.png', 'bo_1.png': painting(3).save(top/'characters'/name)
    got = match_drawings(top, split)
    assert len(got) == 18 and got.unknown == ['characters'] and ('extra', 1, 2, ['characters']) in got.counts
    top = save_grids(ours, tmp_path/'strips', 1, 3)
    painting(4, (47, 20)).save(top/'cover.png')
    got = match_drawings(top, split, grid='1x3')
    assert pixels(got) == pixels(match_drawings(ours, split)) and got.unknown == ['cover']
    assert '6 pictures cut into 1x3 panels, the first of 32×32 pixels' in got.trouble

def test_more_panels_than_pixels(tmp_path, split, ours):
    top = save_grids(ours, tmp_path/'strips', 1, 3)
    assert '6 of 6 pictures cannot be cut into 50x99 panels' in one_line(match_drawings, top, split, grid='50x99')

def test_numbered_from_0_or_from_1(tmp_path, split, ours):
    "A frame too many, as large as the others: nobody knows which; a table can say."
    top = save(ours, tmp_path/'theirs', '{s}_{k}')
    painting(5, (32, 32)).save(top/'02_0.png')
    said = one_line(match_drawings, top, split)
    assert 'story 02 has 3 frames, found 0 to 3: it cannot be told whether they are numbered from 0 or from 1' in said and '--map' in said
    (tmp_path/'names.csv').write_text('file_name,story_id,frame\n' + '\n'.join(f'{s}_{k}.png,{s},{k}' for s, k, _ in frames(ours)))
    assert pixels(match_drawings(top, split, table=tmp_path/'names.csv')) == pixels(match_drawings(ours, split))

def test_from_0_is_not_ours(tmp_path, split, ours):
    "arldm-draw counts from 1: nothing is written there, and a report shows the frames that were scored."
    top = save(ours, tmp_path/'theirs', '{s}/{k}', first=0)
    before = tree(top)
    run_score(top, split, out=tmp_path/'scores')
    run_score(top, split)
    assert tree(top) == before
    assert {k: x.name for k, x in read_run(tmp_path/'scores').drawn['02'].items()} == {1: '0.png', 2: '1.png', 3: '2.png'}

def test_links_back_are_not_followed(tmp_path, split, ours):
    top = save(ours, tmp_path/'up/theirs', '{s}/shot_{k}')
    (top/'loop').symlink_to(top)
    (top/'01/up').symlink_to(tmp_path)
    assert len(match_drawings(top, split)) == 18

def test_pictures_with_and_without_a_timestamp(tmp_path, split, ours):
    top = save(ours, tmp_path/'uno', f'{NEW}/shots/{{s}}/shot_{{k}}')
    save(ours, top, 'shots/{s}/shot_{k}')
    assert match_drawings(top, split).trouble == [f'2 timestamps in one folder: the newest, {NEW}, is taken, not what has none']

@pytest.mark.parametrize('name', ['NAMES.CSV', 'names.tsv', 'names.txt'])
def test_a_table_of_any_name(name, tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', 'x{s}{k}_output')
    lines = ['file_name\tstory_id\tframe'] + [f'x{s}{k}_output.png\t{s}\t{k}' for s, k, _ in frames(ours)]
    (tmp_path/name).write_text('\n'.join(lines))
    assert len(match_drawings(top, split, table=tmp_path/name)) == 18

def test_the_frame_of_a_folder(tmp_path, split, ours):
    "A folder has many frames; the number that a table gives it would count for nothing."
    top = save(ours, tmp_path/'theirs', 'x{s}/{k}')
    (tmp_path/'names.csv').write_text('file_name,story_id,frame\nx01,01,2\n')
    assert 'line 2: x01 is a folder, whose pictures are numbered by their names; leave frame empty' in one_line(
        match_drawings, top, split, table=tmp_path/'names.csv')

def test_upper_case(tmp_path, split, ours):
    top = save(ours, tmp_path/'theirs', f'{NEW}/{{s}}/Shots/SHOT_{{k}}')
    for path in top.rglob('*.png'): path.rename(path.with_suffix('.PNG'))
    assert pixels(match_drawings(top, split)) == pixels(match_drawings(ours, split))
