"Your own pictures: both layouts give the stories that were put in, and what does not fit is one line."
import csv, json

import numpy as np, pytest

from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.data.story import StoryFile
from arldm.files.pictures import decode, to_png
from PIL import Image

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
