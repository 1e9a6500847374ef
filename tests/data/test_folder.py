"Your own pictures: both layouts give the stories that were put in, and what does not fit is one line."
import csv, json, random, shutil
from collections import Counter

import numpy as np, pytest
from PIL import Image

from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.data.story import Story, StoryFile, write_stories
from arldm.files.pictures import to_png

def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), 'uint8')
    return Image.fromarray(pixels)

# name -> captions, pictures: twelve stories of three to twelve frames
STORIES = {}
for i in range(12):
    n = 3 + i if i > 8 else 3 + i % 3
    captions = [f'Story {i}, frame {k}: “yes”, she said; "no".' for k in range(n)]
    STORIES[f's{i}'] = captions, [picture(100*i + k) for k in range(n)]

def write_folders(root, stories=STORIES):
    for name, (captions, pictures) in stories.items():
        (root/name).mkdir(parents=True)
        (root/name/'captions.txt').write_text('\n'.join(captions), encoding='utf-8')
        for k, one in enumerate(pictures, 1): one.save(root/name/f'{k}.png')
    return root

def rows_of(stories=STORIES, **more):
    "Rows of a table, the last story first, and its frames from the last to the first."
    rows = []
    for name, (captions, pictures) in reversed(stories.items()):
        for k in range(len(pictures), 0, -1):
            rows.append(dict(file_name=f'{name}/{k}.png', text=captions[k-1], story_id=name, frame=k) | more)
    return rows

def write_csv(root, rows, dialect='excel', encoding='utf-8'):
    with open(root/'metadata.csv', 'w', newline='', encoding=encoding) as f:
        writer = csv.DictWriter(f, rows[0], dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)

def write_jsonl(root, rows): (root/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')

def write_pictures(root, stories=STORIES):
    for name, (_, pictures) in stories.items():
        (root/name).mkdir(parents=True, exist_ok=True)
        for k, one in enumerate(pictures, 1): one.save(root/name/f'{k}.png')
    return root

def read(path):
    "{split: {id: (album, captions, arrays)}} of a story file."
    file = StoryFile(path)
    return {split: {s.id: (s.album, s.captions, [np.asarray(p).tolist() for p in s.pictures()]) for s in file[split]}
            for split in file.splits}

def converted(raw, tmp_path, **how):
    counts = convert('folder', raw, tmp_path/'x.h5', quiet=True, **how)
    return counts, read(tmp_path/'x.h5')

def wanted(stories=STORIES):
    return {name: (name, tuple(c), [np.asarray(p).tolist() for p in pictures]) for name, (c, pictures) in stories.items()}

def test_folders(tmp_path):
    counts, found = converted(write_folders(tmp_path/'raw'), tmp_path)
    assert StoryFile(tmp_path/'x.h5').corpus == 'folder'
    assert [len(x) for x in found.values()] == [10, 1, 1] and list(found) == ['train', 'val', 'test']
    assert {k: v for split in found.values() for k, v in split.items()} == wanted()
    assert counts['skipped'] == {} and counts['test']['stories'] == 1

@pytest.mark.parametrize('write', [write_csv, write_jsonl])
def test_tables_give_the_same_stories_as_folders(tmp_path, write):
    _, folders = converted(write_folders(tmp_path/'raw'), tmp_path)
    table = write_pictures(tmp_path/'table')
    write(table, rows_of())
    assert converted(table, tmp_path)[1] == folders

# splits and albums

FEW = {name: STORIES[name] for name in ('s0', 's1', 's2')}

def by_split(found): return {split: sorted(stories) for split, stories in found.items()}

@pytest.mark.parametrize('val', ['validation', 'val', 'valid', 'dev', 'Validation'])
def test_folders_of_splits(tmp_path, val):
    for split, name in zip(('train', val, 'test'), FEW): write_folders(tmp_path/'raw'/split, {name: FEW[name]})
    assert by_split(converted(tmp_path/'raw', tmp_path)[1]) == dict(train=['s0'], val=['s1'], test=['s2'])

def test_one_table_in_each_folder_of_a_split(tmp_path):
    "Its pictures are relative to it, and stories of different splits may have the same id."
    for split, name in zip(('train', 'val', 'test'), FEW):
        folder = write_pictures(tmp_path/'raw'/split, {name: FEW[name]})
        write_csv(folder, rows_of({name: FEW[name]}, story_id='1'))
    found = converted(tmp_path/'raw', tmp_path)[1]
    assert {split: [s[1:] for s in stories.values()] for split, stories in found.items()} == {
        split: [wanted(FEW)[name][1:]] for split, name in zip(('train', 'val', 'test'), FEW)}
    assert [(k, v[0]) for stories in found.values() for k, v in stories.items()] == [
        ('1', 'train-1'), ('1', 'val-1'), ('1', 'test-1')]

def test_columns_split_and_album(tmp_path):
    raw = write_pictures(tmp_path/'raw')
    split = dict(zip(STORIES, ['Train', 'validation', 'test', 'dev']*3))
    rows = [row | dict(split=split[row['story_id']], album=f'a{split[row["story_id"]]}') for row in rows_of()]
    write_csv(raw, rows)
    _, found = converted(raw, tmp_path)
    assert by_split(found) == dict(train=['s0', 's4', 's8'], val=['s1', 's11', 's3', 's5', 's7', 's9'], test=['s10', 's2', 's6'])
    assert found['test']['s2'] == ('atest', *wanted()['s2'][1:])

def test_pictures_of_one_table_in_folders_of_splits(tmp_path):
    rows = []
    for split, name in zip(('train', 'validation', 'test'), FEW):
        write_pictures(tmp_path/'raw'/split, {name: FEW[name]})
        rows += [row | dict(file_name=f'{split}/{row["file_name"]}') for row in rows_of({name: FEW[name]})]
    write_jsonl(tmp_path/'raw', rows)
    assert by_split(converted(tmp_path/'raw', tmp_path)[1]) == dict(train=['s0'], val=['s1'], test=['s2'])

def test_albums_are_not_parted_and_the_seed_counts(tmp_path):
    raw = write_pictures(tmp_path/'raw')
    rows = [row | dict(album=f'a{int(row["story_id"][1:])//2}') for row in rows_of()]
    write_csv(raw, rows)
    _, found = converted(raw, tmp_path)
    albums = {split: {s[0] for s in stories.values()} for split, stories in found.items()}
    assert [len(x) for x in albums.values()] == [4, 1, 1] and len(set.union(*albums.values())) == 6
    assert converted(raw, tmp_path)[1] == found
    write_csv(raw, rows[::-1])
    assert converted(raw, tmp_path)[1] == found                         # rows in another order
    others = [by_split(converted(raw, tmp_path, seed=seed)[1]) for seed in range(1, 5)]
    assert any(x != by_split(found) for x in others)

def test_folders_of_albums(tmp_path):
    raw = write_folders(tmp_path/'raw'/'train'/'holiday', FEW)
    write_folders(tmp_path/'raw'/'test'/'work', FEW)
    _, found = converted(raw.parents[1], tmp_path)
    assert [(k, v[0]) for k, v in found['train'].items()] == [(f'holiday-{name}', 'holiday') for name in FEW]
    assert [(k, v[0]) for k, v in found['test'].items()] == [(f'work-{name}', 'work') for name in FEW]

@pytest.mark.parametrize('n, line', [(1, '1 album divided 80/10/10 with seed 0: 1 train, 0 val, 0 test; draw and score need at least 2 albums'),
                                     (3, '3 albums divided 80/10/10 with seed 0: 1 train, 1 val, 1 test')])
def test_what_was_divided_is_said(tmp_path, capsys, n, line):
    raw = write_folders(tmp_path/'raw', dict(list(STORIES.items())[:n]))
    convert('folder', raw, tmp_path/'x.h5')
    assert capsys.readouterr().out.splitlines()[0] == f'no splits given: {line}'

def test_missing_splits_and_unread_pictures_are_said(tmp_path, capsys):
    raw = write_folders(tmp_path/'raw'/'train', FEW).parent
    picture(1).save(raw/'cover.png')
    convert('folder', raw, tmp_path/'x.h5')
    assert capsys.readouterr().out.splitlines()[:3] == [
        'no val split: training computes no validation loss',
        'no test split: name another one where you draw and score, such as --split val',
        '1 picture belongs to no story, such as cover.png']
    assert StoryFile(tmp_path/'x.h5').splits == ('train',)


# as spreadsheets and archives write it

@pytest.mark.parametrize('dialect, encoding', [('excel', 'utf-8-sig'), ('excel-tab', 'utf-16'), ('unix', 'utf-8')])
def test_exports_of_spreadsheets(tmp_path, dialect, encoding):
    raw = write_pictures(tmp_path/'raw', FEW)
    write_csv(raw, rows_of(FEW), dialect, encoding)
    assert {k: v for split in converted(raw, tmp_path)[1].values() for k, v in split.items()} == wanted(FEW)

def test_names_of_windows_numbers_as_ids_and_empty_rows(tmp_path):
    raw = write_pictures(tmp_path/'raw', FEW)
    rows = [row | dict(file_name=row['file_name'].replace('/', '\\'), story_id=int(row['story_id'][1:]) + 1) for row in rows_of(FEW)]
    write_jsonl(raw, rows)
    text = (raw/'metadata.jsonl').read_text()
    (raw/'metadata.jsonl').write_bytes(text.replace('\n', '\r\n\r\n').encode('utf-8-sig'))
    _, found = converted(raw, tmp_path)
    assert sorted(k for split in found.values() for k in split) == ['1', '2', '3']

def test_ten_comes_after_nine_and_hidden_files_are_none(tmp_path):
    raw = write_folders(tmp_path/'raw', {'s11': STORIES['s11']})
    (raw/'s11/.DS_Store').write_bytes(b'x')
    (raw/'s11/._1.png').write_bytes(b'x')
    (raw/'__MACOSX/s11').mkdir(parents=True)
    (raw/'__MACOSX/s11/1.png').write_bytes(b'x')
    assert len(STORIES['s11'][0]) == 14 and converted(raw, tmp_path)[1] == dict(train=wanted({'s11': STORIES['s11']}))

def test_other_files_in_a_story_are_no_story(tmp_path):
    "A folder of notes, or of a drawing program, inside the folder of a story stops nothing."
    raw = write_folders(tmp_path/'raw', FEW)
    for name in 's1/notes/readme.txt', 's2/psd/1.psd', 's2/empty/.keep':
        (raw/name).parent.mkdir()
        (raw/name).write_text('x')
    assert {k: v for split in converted(raw, tmp_path)[1].values() for k, v in split.items()} == wanted(FEW)

def test_bytes_of_files_are_kept(tmp_path):
    raw = write_folders(tmp_path/'raw', {'s0': STORIES['s0']})
    picture(7).save(raw/'s0/2.JPG', 'JPEG')
    (raw/'s0/2.png').unlink()
    converted(raw, tmp_path)
    assert StoryFile(tmp_path/'x.h5')['train'][0].frames == tuple(
        (raw/'s0'/name).read_bytes() for name in ('1.png', '2.JPG', '3.png'))

def test_resolution_and_dry_run(tmp_path):
    raw = write_folders(tmp_path/'raw')
    counts = convert('folder', raw, tmp_path/'x.h5', dry_run=True, quiet=True)
    assert not (tmp_path/'x.h5').exists() and converted(raw, tmp_path)[0] == counts
    converted(raw, tmp_path, resolution=10)
    assert StoryFile(tmp_path/'x.h5')['train'][0].pictures()[0].size == (12, 10)


# what does not fit

def put(name, data):
    def change(raw):
        (raw/name).parent.mkdir(parents=True, exist_ok=True)
        (raw/name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return change

def without(*names): return lambda raw: [(raw/name).unlink() for name in names]

# what is done to a folder of three stories, the line, and the reason it is counted under
BAD_FOLDERS = dict(
    gap=(without('s1/2.png'), r'story s1: no picture 2 in s1, although there is a picture 3', 'missing picture'),
    gap_heic=(lambda raw: (raw/'s1/2.png').rename(raw/'s1/2.heic'),
              r'story s1: no picture 2 in s1 \(not read: 2.heic\), although there is a picture 3', 'missing picture'),
    late=(without('s1/1.png'), r'story s1: no picture 1 in s1, although there is a picture 2', 'missing picture'),
    captions=(put('s1/captions.txt', 'One.\nTwo.\n\nThree.\n\nFour.\nFive.\n'),
              r'story s1: s1/captions.txt has 5 captions, s1 has 4 pictures; every picture needs one caption', 'wrong length'),
    no_captions=(without('s1/captions.txt'), r'story s1: no captions.txt in s1; expected one with a caption for each picture, one a line', 'missing captions'),
    empty_captions=(put('s1/captions.txt', ' \n\n'), r'story s1: .*s1/captions.txt: no captions in it; expected one a line', 'bad captions'),
    latin=(put('s1/captions.txt', 'Ü'.encode('latin-1')), r'story s1: .*captions.txt: expected text in UTF-8, one caption a line; save it as UTF-8', 'bad captions'),
    torn=(put('s1/2.png', b'\x89PNG'), r'story s1: 2.png is not a whole picture \(.*\)', 'not a picture'),
    twice=(put('s1/02.png', to_png(picture(1))), r'story s1: 02.png and 2.png in s1 differ only in zeros or their ending', 'repeated picture'),
    empty=(lambda raw: (raw/'s9').mkdir(), r'story s9: no pictures in s9; expected 1.png, 2.png, …', 'missing picture'),
    notes=(put('notes/a.txt', 'x'), r'story notes: no pictures in notes \(not read: a.txt\); expected 1.png, 2.png, …', 'missing picture'))

@pytest.mark.parametrize('what', BAD_FOLDERS)
def test_bad_folders(tmp_path, what):
    change, line, reason = BAD_FOLDERS[what]
    raw = write_folders(tmp_path/'raw', FEW)
    change(raw)
    with pytest.raises(StoryError, match=f'^{line}; pass --skip-bad to leave such stories out$'):
        convert('folder', raw, tmp_path/'x.h5', quiet=True)
    assert not (tmp_path/'x.h5').exists()
    counts, found = converted(raw, tmp_path, skip_bad=True)
    assert counts['skipped'] == {reason: 1}
    assert {k: v for split in found.values() for k, v in split.items()}.items() <= wanted(FEW).items()

def row(change): # of the second row of s2; the header is line 1, s2 comes first and backwards
    def do(rows): change(rows[1])
    return do

BAD_ROWS = dict(
    no_file=(row(lambda r: r.update(file_name='s2/7.png')), r'metadata.csv, line 3: story s2: no picture s2/7.png in .*raw', 'missing picture'),
    no_name=(row(lambda r: r.update(file_name='')), r'metadata.csv, line 3: story s2: no file_name, expected the path of a picture', 'no file name'),
    up=(row(lambda r: r.update(file_name='s2/../../x.png')), r'metadata.csv, line 3: story s2: s2/../../x.png leads out of the folder; put the picture there', 'unsafe path'),
    root=(row(lambda r: r.update(file_name='/etc/passwd')), r'metadata.csv, line 3: story s2: /etc/passwd leads out of the folder; put the picture there', 'unsafe path'),
    drive=(row(lambda r: r.update(file_name='C:\\x.png')), r'metadata.csv, line 3: story s2: C:/x.png leads out of the folder; put the picture there', 'unsafe path'),
    caption=(row(lambda r: r.update(text='\u200b')), r'metadata.csv, line 3: story s2: text is empty or only spaces, expected a caption', 'empty caption'),
    no_caption=(row(lambda r: r.update(text=' ')), r'metadata.csv, line 3: story s2: no text', 'empty caption'),
    frame=(row(lambda r: r.update(frame='1.0')), r'metadata.csv, line 3: story s2: frame is "1.0", expected a whole number of at most 9 digits', 'bad frame'),
    no_frame=(row(lambda r: r.update(frame='')), r'metadata.csv, line 3: story s2: no frame, although other rows of the story have one', 'missing frame'),
    same_frame=(row(lambda r: r.update(frame=1)), r'metadata.csv, line 6: story s2: frame 1 is also in metadata.csv, line 3', 'repeated frame'),
    two_albums=(lambda rows: [r.update(album=a) for r, a in zip(rows, 'aab')],
                r'metadata.csv, line 4: story s2 is in album b, in metadata.csv, line 2 it is in a; a story has one album', 'two albums'),
    below_zero=(lambda rows: [r.update(frame=int(r['frame']) - 2) for r in rows if r['story_id'] == 's2'], r'story s2: no picture 1 in metadata.csv, although there is a picture -1', 'missing picture'),
    gap=(row(lambda r: r.update(frame=9)), r'story s2: no picture 4 in metadata.csv, although there is a picture 5', 'missing picture'))

@pytest.mark.parametrize('what', BAD_ROWS)
def test_bad_rows(tmp_path, what):
    change, line, reason = BAD_ROWS[what]
    raw = write_pictures(tmp_path/'raw', FEW)
    rows = rows_of(FEW)
    change(rows)
    write_csv(raw, rows)
    with pytest.raises(StoryError, match=f'^{line}; pass --skip-bad to leave such stories out$'):
        convert('folder', raw, tmp_path/'x.h5', quiet=True)
    counts, found = converted(raw, tmp_path, skip_bad=True)
    assert counts['skipped'] == {reason: 1}
    assert {k: v for split in found.values() for k, v in split.items()} == {k: v for k, v in wanted(FEW).items() if k != 's2'}

def test_a_link_that_leads_out(tmp_path):
    raw = write_folders(tmp_path/'raw', FEW)
    (raw/'s1/2.png').rename(tmp_path/'2.png')
    (raw/'s1/2.png').symlink_to(tmp_path/'2.png')
    with pytest.raises(StoryError, match='^story s1: 2.png is a link that leads out of .*raw; pass --skip-bad'):
        convert('folder', raw, tmp_path/'x.h5', quiet=True)

HEAD = 'file_name,text,story_id\n'
def table(text, name='metadata.csv'):
    def change(raw):
        for file in raw.rglob('captions.txt'): file.unlink()
        (raw/name).parent.mkdir(exist_ok=True)
        (raw/name).write_text(text)
    return change

def moved(name, *stories):
    def change(raw):
        (raw/name).mkdir()
        for story in stories: (raw/story).rename(raw/name/story)
    return change

EXPECTED = r'expected the columns file_name, text \(or caption, prompt, description\) and story_id, and if needed frame, album and split'
# folders that cannot be used at all, with --skip-bad or not
NO_FOLDERS = dict(
    both=(put('metadata.csv', HEAD), r'.*raw: both metadata.csv and s0/captions.txt; keep either the table or the folders with captions.txt'),
    ssid=(put('a/SSID_Train.json', '{}'), r'.*SSID_Train.json: this is the layout of ssid; run arldm-convert ssid .*raw OUT'),
    elsewhere=(table(HEAD, 'tables/metadata.csv'), r'.*raw/tables/metadata.csv: a table in a folder of its own; expected it in .*raw, or one in each of its folders train, validation and test'),
    two_tables=(lambda raw: [table(HEAD)(raw), table('{}', 'metadata.jsonl')(raw)],
                r'.*raw: both metadata.csv and metadata.jsonl; keep one table in .*raw, or one in each folder of a split'),
    no_rows=(table(HEAD), rf'.*metadata.csv: no rows in it; {EXPECTED}'),
    no_story=(table('file_name,text\ns0/1.png,One.\n'), rf'.*metadata.csv: no column story_id among file_name, text; {EXPECTED}'),
    columns=(table('image;words\n1;2\n'), rf'.*metadata.csv: no column file_name and no column story_id and no column text among image, words; {EXPECTED}'),
    two_captions=(table('file_name,text,prompt,story_id\na,b,c,d\n'), r'.*metadata.csv: columns text and prompt both hold captions; keep one of them'),
    two_names=(table('file_name,text,Text,story_id\na,b,c,d\n'), r'metadata.csv: two columns are named text'),
    comma=(table(HEAD + '\ns0/1.png,One, two.,s0\n'), r'metadata.csv, line 3: 4 cells, expected 3; a cell with a comma needs quotes around it'),
    quote=(table(HEAD + 's0/1.png,One.,s0\ns0/2.png,"Two.,s0\n'), r'metadata.csv, line 3: cannot be read \(.*\); a cell with a comma, a quote or a line break needs quotes around it'),
    no_id=(table(HEAD + 's0/1.png,"One\nline.",s0\ns0/2.png,Two.,\n'), r'metadata.csv, line 4: no story_id; every row needs the id of its story'),
    json=(table('\n{"file_name": 1', 'metadata.jsonl'), r'metadata.jsonl, line 2: not JSON \(.*\)'),
    list=(table('[1]', 'metadata.jsonl'), r'metadata.jsonl, line 1: expected a JSON object such as .*'),
    id=(table('{"file_name": "s0/1.png", "text": "One.", "story_id": 1.5}', 'metadata.jsonl'),
        r'metadata.jsonl, line 1: story of this row: story_id is 1.5, expected text or a whole number below 2\*\*63'),
    mixed=(moved('train', 's0', 's1'), r'.*raw: train/s0 lies in the folder of a split, s2 does not; put all stories into such folders or none'),
    deep=(lambda raw: (raw/'s0').rename((raw/'a/b').mkdir(parents=True) or raw/'a/b/s0'),
          r'a/b/s0: pictures 3 folders deep; expected STORY/1.png or ALBUM/STORY/1.png, in train, validation and test folders or not'),
    latin=(lambda raw: table('')(raw) or put('metadata.csv', (HEAD + 'a,Ü,b').encode('latin-1'))(raw),
           r'.*metadata.csv: expected text in UTF-8, a table with the columns file_name, text and story_id; save it as UTF-8'))

@pytest.mark.parametrize('what', NO_FOLDERS)
def test_what_is_no_folder_of_stories(tmp_path, what):
    change, line = NO_FOLDERS[what]
    raw = write_folders(tmp_path/'raw', FEW)
    change(raw)
    for skip_bad in False, True:
        with pytest.raises(StoryError, match=f'^{line}$'): convert('folder', raw, tmp_path/'x.h5', skip_bad=skip_bad, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ['raw']

def test_one_story_an_empty_folder_an_archive_and_a_table(tmp_path):
    raw = write_folders(tmp_path/'raw', FEW)
    write_csv(tmp_path, rows_of(FEW))
    shutil.copytree(tmp_path/'raw/s0', tmp_path/'flat')
    (tmp_path/'flat/captions.txt').rename(tmp_path/'flat/list.csv')
    (tmp_path/'empty').mkdir()
    (tmp_path/'raw.zip').write_bytes(b'PK')
    for name, line in {'raw/s0': 'its pictures lie in no folder of a story; expected .*raw/s0/STORY/1.png … with captions.txt, '
                                 'or metadata.csv with the columns file_name, text and story_id',
                       'flat': 'its pictures lie in no folder of a story; .* file_name, text and story_id; if list.csv is that table, rename it',
                       'empty': 'no pictures in it; expected STORY/1.png … with STORY/captions.txt, or metadata.csv',
                       'raw.zip': 'a file, expected a folder of stories; unpack it first if it is an archive, and give the folder',
                       'metadata.csv': f'a file, expected a folder of stories; give its folder, {tmp_path}',
                       'none': 'no such folder'}.items():
        with pytest.raises(StoryError, match=f'^{tmp_path}/{name}: {line}$'): convert('folder', tmp_path/name, tmp_path/'x.h5', quiet=True)

SPLITS = dict(
    unknown=(dict(split='dev1'), r"metadata.csv, line 2: story s2: split is 'dev1', expected train, validation or test", 'unknown split'),
    none=(dict(split=''), r'story s2 is in no split, although s1 is in train', 'no split'))

@pytest.mark.parametrize('what', SPLITS)
def test_bad_splits(tmp_path, what):
    change, line, reason = SPLITS[what]
    raw = write_pictures(tmp_path/'raw', FEW)
    write_csv(raw, [row | (change if row['story_id'] == 's2' else dict(split='train')) for row in rows_of(FEW)])
    with pytest.raises(StoryError, match=f'^{line}; pass --skip-bad'): convert('folder', raw, tmp_path/'x.h5', quiet=True)
    counts, found = converted(raw, tmp_path, skip_bad=True)
    assert counts['skipped'] == {reason: 1} and by_split(found) == dict(train=['s0', 's1'])

def test_a_story_in_two_splits(tmp_path):
    raw = write_pictures(tmp_path/'raw', FEW)
    write_csv(raw, [row | dict(split='test' if row['file_name'] == 's1/2.png' else 'train') for row in rows_of(FEW)])
    line = 'metadata.csv, line 9: story s1 is in split test, in metadata.csv, line 7 it is in train; a story has one split'
    with pytest.raises(StoryError, match=f'^{line}; pass --skip-bad'): convert('folder', raw, tmp_path/'x.h5', quiet=True)
    folder = write_pictures(tmp_path/'more/test', FEW)
    write_csv(folder, rows_of(FEW, split='train'))
    with pytest.raises(StoryError, match='^test/metadata.csv, line 2: story s2: split is train, but the picture lies in the folder of test; pass'):
        convert('folder', tmp_path/'more', tmp_path/'x.h5', quiet=True)


# damaged tables

@pytest.mark.parametrize('name', ['metadata.csv', 'metadata.jsonl', 's1/captions.txt'])
def test_damaged_tables_are_one_line_or_right_stories(tmp_path, name):
    "Pictures that are shown are those of the folder, and stories have as many captions as pictures."
    if name.startswith('s1'): raw = write_folders(tmp_path/'raw', FEW)
    else:
        raw = write_pictures(tmp_path/'raw', FEW)
        (write_csv if name.endswith('.csv') else write_jsonl)(raw, rows_of(FEW, album='a', split='train'))
    good = (raw/name).read_bytes()
    shown = {(raw/s/f'{k}.png').read_bytes() for s in FEW for k in range(1, len(FEW[s][0]) + 1)}
    rng = random.Random(name)
    found = Counter()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice([1, 2, 8])):
            at = rng.randrange(len(data))
            how = rng.randrange(4)
            if how == 0: del data[at:at + rng.choice([1, 5, 80])]
            elif how == 1: data[at] = rng.choice(b'",;\n\t\\/{}:0\xff\xc3')
            elif how == 2: data[at:at] = rng.choice([b'"', b'\n', b',', b'../', b'\r\n\r\n', b'\0', '\ud7ff'.encode()])
            else: data[at:at] = data[max(0, at - 30):at]
        (raw/name).write_bytes(data)
        try: convert('folder', raw, tmp_path/'x.h5', skip_bad=rng.random() < .5, quiet=True)
        except StoryError as e:
            assert str(e) and '\n' not in str(e)
            found['line'] += 1
            continue
        found['file'] += 1
        for story in StoryFile(tmp_path/'x.h5')['train']: assert set(story.frames) <= shown and all(map(str.strip, story.captions))
    assert min(found.values()) > 3 and len(found) == 2, found


# from Python

def test_a_linked_folder_is_not_overlooked(tmp_path):
    "A story that is a link to the folder of another would be missing without a word."
    raw = write_folders(tmp_path/'raw')
    (raw/'again').symlink_to(raw/'s0')
    with pytest.raises(StoryError, match=f'^{raw}/again is a link to a folder; put the folder itself there$'):
        convert('folder', raw, tmp_path/'x.h5')

def test_from_pictures_of_every_kind(tmp_path):
    "A list is divided as a folder with the same names is; pixels are kept, and the bytes of files."
    folders = write_folders(tmp_path/'raw', {str(i): story for i, story in enumerate(STORIES.values(), 1)})
    _, wanted_stories = converted(folders, tmp_path)
    kinds = []
    for i, (captions, pictures) in enumerate(STORIES.values(), 1):
        kinds += [(captions, pictures), (tuple(captions), np.stack([np.asarray(p) for p in pictures])),
                  (captions, [folders/f'{i}/{k}.png' for k in range(1, len(pictures) + 1)]), (captions, map(to_png, pictures))][i % 4:][:1]
    file = StoryFile.from_pictures(tmp_path/'own.h5', kinds)
    assert read(tmp_path/'own.h5') == wanted_stories and file.corpus == 'folder'
    assert repr(file).splitlines() == [f'{tmp_path}/own.h5: corpus folder',
        'train: 10 stories, 10 albums, 3–13 frames per story, 58 pictures (58 different)',
        'val: 1 story, 1 album, 3 frames per story, 3 pictures (3 different)',
        'test: 1 story, 1 album, 14 frames per story, 14 pictures (14 different)']

def test_from_pictures_in_splits(tmp_path):
    (captions, pictures), other = STORIES['s0'], STORIES['s1']
    story = Story('mine', 'album', captions, pictures)
    picture(5).save(tmp_path/'5.jpg')
    file = StoryFile.from_pictures(tmp_path/'own.h5', dict(train=[story, other], test=[(['A jpeg.'], [tmp_path/'5.jpg'])]))
    assert [(s.id, s.album) for s in file['train']] == [('mine', 'album'), ('2', '2')]
    assert file['train'][0] == story and file['test'][0] == Story('3', '3', ('A jpeg.',), ((tmp_path/'5.jpg').read_bytes(),))
    assert repr(file['test']) == f'{tmp_path}/own.h5, split test: 1 story, 1 album, 1 frame per story, 1 picture (1 different)'

def test_from_pictures_names_splits_as_a_folder_does(tmp_path):
    "`validation` is the split that training validates on, and one split has one name."
    one = STORIES['s0']
    file = StoryFile.from_pictures(tmp_path/'own.h5', dict(Train=[one], validation=[one], test=[one], hard=[one]))
    assert file.splits == ('train', 'val', 'test', 'hard')
    with pytest.raises(StoryError, match='^two of the splits are val: train, valid, val; put their stories into one list$'):
        StoryFile.from_pictures(tmp_path/'x.h5', dict(train=[one], valid=[one], val=[one]))
    assert [path.name for path in tmp_path.iterdir()] == ['own.h5']

def test_an_album_that_is_a_number(tmp_path):
    "Ids and albums are text; anything else is named instead of compared."
    captions, pictures = STORIES['s0']
    with pytest.raises(StoryError, match='^story 5: 5 is not text that a file can hold$'):
        StoryFile.from_pictures(tmp_path/'x.h5', [Story(5, 6, captions, pictures), STORIES['s1']])

def test_write_stories_takes_what_a_program_has(tmp_path):
    captions, pictures = STORIES['s0']
    picture(5).save(tmp_path/'5.jpg')
    mixed = [pictures[0], np.asarray(pictures[1]), (to_png(pictures[2]), str(tmp_path/'5.jpg'))]
    write_stories(tmp_path/'x.h5', dict(train=[Story('a', 'b', captions, mixed)]), 'folder')
    frames = StoryFile(tmp_path/'x.h5')['train'][0].frames
    assert frames == (*map(to_png, pictures[:2]), (to_png(pictures[2]), (tmp_path/'5.jpg').read_bytes()))

P = picture(1)
WRONG = dict(
    array=((['a', 'b'], [P, np.zeros((4, 4, 3))]), r'story 2, frame 2: an array of float64 \(4, 4, 3\), expected uint8 \(h, w, 3\)'),
    bytes=((['a', 'b'], [P, b'<html>']), r'story 2, frame 2: not a whole picture \(cannot identify image file\)'),
    path=((['a', 'b'], [P, 'none.png']), r'story 2, frame 2: none.png: not a picture that can be read \(No such file or directory\); name a picture that exists'),
    kind=((['a'], [7]), r'story 2, frame 1: got int, expected a picture: its path, its bytes, a PIL picture or a uint8 array \(h, w, 3\)'),
    caption=((['a', ' '], [P, P]), r"story 2, frame 2: expected a caption, got ' '"),
    number=((['a', 7], [P, P]), r'story 2, frame 2: expected a caption, got 7'),
    fewer=((['a', 'b'], [P]), r'story 2 has 2 captions and 1 pictures; every frame needs one of each'),
    text=(('ab', [P, P]), r'story 2: expected \(captions, pictures\) or \(captions, pictures, cast\): a list of texts, a list of as many pictures, {name: picture}'),
    one=((['a'], P), r'story 2: expected \(captions, pictures\) or \(captions, pictures, cast\): a list of texts, a list of as many pictures, {name: picture}'),
    none=(None, r'story 2: expected \(captions, pictures\) or \(captions, pictures, cast\): a list of texts, a list of as many pictures, {name: picture}'))

@pytest.mark.parametrize('what', WRONG)
def test_what_is_no_story(tmp_path, what):
    item, line = WRONG[what]
    with pytest.raises(StoryError, match=f'^{line}$'): StoryFile.from_pictures(tmp_path/'x.h5', dict(train=[STORIES['s0'], item]))
    assert not [*tmp_path.iterdir()]
