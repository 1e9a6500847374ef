"Drawn beside reference: what fits is matched, what does not is named and counted, and nothing is guessed."
import os, shutil
from pathlib import Path

import pytest
from PIL import Image

from arldm.core import StoryError
from arldm.draw.drawing_files import drawn_frames, drawn_sets, set_folders
from arldm.draw.matching import match_drawings
from arldm.files.pictures import to_png
from arldm.data.story import Story, StoryFile
from painted import draw, painting, stories, story_file

HERE = Path(__file__).resolve().parents[1]

@pytest.fixture
def split(tmp_path): return story_file(tmp_path/'data', test=list(stories(3, 2, 3)), val=[])['test']

@pytest.fixture
def run(tmp_path, split):
    draw(tmp_path/'run'/'drawn', split)
    return tmp_path/'run'


# what is there

def test_drawn_frames_are_folders_of_numbers(tmp_path):
    for name in ('s1/10.png', 's1/2.png', 's1/1.png', 's1/strip.png', 's1/-1.png', 's1/1.5.png', 's1/3.jpg', 's0/7.png', 'empty/x',
                 '[odd] name é/1.png'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(b'')
    (tmp_path/'a file').write_text('')
    found = drawn_frames(tmp_path)
    assert {s: list(f) for s, f in found.items()} == {'[odd] name é': [1], 's0': [7], 's1': [1, 2, 10]}
    assert found['s1'][10] == tmp_path/'s1/10.png'

def test_a_story_whose_name_begins_with_a_dot_is_drawn(tmp_path):
    "Only a folder that is not finished yet is left out."
    for name in '.hidden/1.png', '..hidden-7f-12-0123abcd/1.png', '.s1-2fc00000001-3981-cae3afac/1.png':
        (tmp_path/name).parent.mkdir()
        (tmp_path/name).write_bytes(b'')
    assert list(drawn_frames(tmp_path)) == ['.hidden']

def test_only_sets_that_a_command_writes_are_sets(run):
    for name in 'drawn0', 'drawn1', 'drawn02', 'drawn2', 'drawn-old': shutil.copytree(run/'drawn', run/name)
    assert [path.name for path in set_folders(run)] == ['drawn', 'drawn2']

def test_sets_are_found_in_their_order(run, split):
    for j in 10, 2: shutil.copytree(run/'drawn', run/f'drawn{j}')
    # nothing drawn yet
    (run/'drawn3').mkdir()
    for name in 'drawn2-old', 'drawn2.bak', 'drawn2 (copy)': shutil.copytree(run/'drawn', run/name)
    assert [next(iter(s.values()))[1].parts[-3] for s in drawn_sets(run)] == ['drawn', 'drawn2', 'drawn10']
    # drawings themselves
    assert len(drawn_sets(run/'drawn')) == 1

def test_nothing_there_is_a_line(tmp_path, split):
    with pytest.raises(StoryError, match='no such folder'): match_drawings(tmp_path/'absent', split)
    (tmp_path/'drawn').mkdir()
    said = 'drawn: no drawings; expected folders such as s0_0, s0_1, s1_0, … with 1.png … 3.png; found nothing; draw first: arldm-draw$'
    with pytest.raises(StoryError, match=said): match_drawings(tmp_path/'drawn', split)
    with pytest.raises(StoryError, match='with 2.png … 3.png; found nothing'): match_drawings(tmp_path/'drawn', split, dict(task='continuation'))
    with pytest.raises(StoryError, match='split val holds no stories'): match_drawings(tmp_path, split.file['val'])
    draw(tmp_path/'other', story_file(tmp_path/'o', test=list(stories(1, start=9)))['test'])
    said = (f'other holds none of the 6 stories of split test of .*stories.h5: expected folders such as s0_0, s0_1, s1_0, … with '
            '1.png … 3.png; found s9_0, s9_1$')
    with pytest.raises(StoryError, match=said): match_drawings(tmp_path/'other', split)

def put(folder, *names):
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        painting(1).save(folder/name)
    return folder

@pytest.mark.parametrize('names, found', [
    (['s0_0_1.png', 's0_0_2.png'], "pictures outside of a story's folder: s0_0_1.png, s0_0_2.png"),
    (['s0_0/frame1.png', 's0_0/2.jpg', 's0_1/3.webp', 's1_0/4.gif'], 'pictures with other names: s0_0/2.jpg, s0_0/frame1.png, s0_1/3.webp, …'),
    (['test/s0_0/1.png'], 'folders without pictures: test')])
def test_what_is_there_instead_is_named(tmp_path, split, names, found):
    "In a run, whose drawings have one layout only; `test_layouts.py` has the folders of others."
    put(tmp_path/'run2'/'drawn', *names)
    with pytest.raises(StoryError) as e: match_drawings(tmp_path/'run2', split)
    assert str(e.value).endswith(f'no drawings; expected folders such as s0_0, s0_1, s1_0, … with 1.png … 3.png; found {found}; '
                                 'draw first: arldm-draw, or rename these')

def test_numbers_that_no_frame_has_are_named(tmp_path, split):
    put(tmp_path/'run2', 's0_1/4.png', 's0_1/5.png')
    with pytest.raises(StoryError, match='run2: none of the drawn frames has a number that its story has; expected 1.png … 3.png in s0_1, found 4.png, 5.png$'):
        match_drawings(tmp_path/'run2', split)


# what belongs together

def test_each_drawing_lies_beside_its_told_frame(run, split):
    d = match_drawings(run, split)
    assert (len(d), d.side, d.trouble, d.missing, d.unknown, d.albums) == (18, 32, [], [], [], ['a0', 'a1', 'a2'])
    for i in range(len(d)):
        story = split[d.story[i]]
        assert split.file.picture(d.reference[i]) == story.frames[d.k[i] - 1] and d.albums[d.album[i]] == story.album
        assert d.read(i) == (run/'drawn'/story.id/f'{d.k[i]}.png').read_bytes() and d.id(i) == story.id

def test_of_several_told_pictures_the_first_one_counts(tmp_path):
    def frame(k, n): return tuple(to_png(painting(10*k + j)) for j in range(n))
    split = story_file(tmp_path, 'pororo', test=[Story('s', 'a', ('x', 'y'), (frame(1, 3), frame(2, 2)))])['test']
    draw(tmp_path/'drawn', split)
    d = match_drawings(tmp_path, split)
    assert [split.file.picture(r) for r in d.reference] == [frame(1, 1)[0], frame(2, 1)[0]]

def test_stories_of_different_lengths_in_a_continuation(tmp_path):
    reference = [*stories(1, 1, 1, start=1), *stories(1, 1, 2, start=2), *stories(1, 1, 5, start=5)]
    split = story_file(tmp_path, test=reference)['test']
    draw(tmp_path/'drawn', split, first=2)
    d = match_drawings(tmp_path, split)
    numbers = {story_id: [] for story_id in split.ids}
    for k, j in zip(d.k, d.story): numbers[split.ids[j]].append(int(k))
    assert numbers == {'s1_0': [], 's2_0': [2], 's5_0': [2, 3, 4, 5]}
    # a story of the given frame only
    assert d.missing == ['s1_0'] and len(d.trouble) == 1

def test_odd_ids(tmp_path):
    ids = ['[x]', '*', 'ab', 'a b', 'é', 'e\u0301', '%2F', "it's", '-n', '123', '{}', '#1?', 'x'*200]
    reference = [Story(s, s, ('x',), (to_png(painting(i)),)) for i, s in enumerate(ids)]
    split = story_file(tmp_path, test=reference)['test']
    draw(tmp_path/'drawn', split)
    d = match_drawings(tmp_path, split)
    assert sorted(d.id(i) for i in range(len(d))) == sorted(ids) and not d.trouble
    assert all(split.file.picture(d.reference[i]) == split[split.index(d.id(i))].frames[0] for i in range(len(d)))

def test_the_originals_story_file(tmp_path):
    path = HERE.parent.parent/'shared/parity/ssid.h5'
    if not path.exists(): pytest.skip('the file by the original stands beside the repository only in CI')
    split = StoryFile(path)['test']
    draw(tmp_path, split)
    d = match_drawings(tmp_path, split)
    assert len(d) == sum(len(split.rows(i)) for i in range(len(split))) and not d.trouble
    assert split.file.picture(d.reference[0]) == split[0].frames[0]


# what does not fit

def test_what_does_not_fit_is_named_and_counted(run, split):
    drawn = run/'drawn'
    shutil.rmtree(drawn/'s2_1')
    (drawn/'s0_0/2.png').unlink()
    (drawn/'s1_1/3.png').unlink()
    for k in 0, 4, 12: shutil.copy(drawn/'s0_1/1.png', drawn/f's0_1/{k}.png')
    shutil.copytree(drawn/'s0_1', drawn/'unknown story')
    d = match_drawings(run, split)
    assert len(d) == 13 and d.missing == ['s2_1'] and d.unknown == ['unknown story']
    said = '\n'.join(d.trouble)
    for words in ('1 of 6 stories of the split is not drawn, first s2_1', '1 drawn story is not in the split', 'first unknown story',
                  '3 drawn frames are more than their stories have, left out, first s0_1/0.png; story s0_1 has 3 frames', '2 frames of drawn stories are missing, first s0_0/2.png'):
        assert words in said
    assert len(d.trouble) == 4 and all('\n' not in line for line in d.trouble)

def test_different_sizes_are_said(run, split):
    painting(5, (48, 60)).save(run/'drawn/s0_0/1.png')
    d = match_drawings(run, split)
    assert d.side == 32 and d.trouble == ['drawings have 2 sizes (17 of 32×32, 1 of 48×60); all are resized to 32 pixels']

def test_one_tiny_drawing_does_not_blur_all(run, split):
    "One icon of 4 pixels among 17 drawings of 32: either it is refused, or the others keep their size."
    painting(5, (4, 4)).save(run/'drawn/s0_0/1.png')
    try: d = match_drawings(run, split)
    except StoryError as e: assert 's0_0/1.png' in str(e)
    else: assert d.side == 32

def wreck(p, damage):
    whole = p.read_bytes()
    p.unlink()
    if damage == 'zero bytes': p.write_bytes(b'')
    if damage == 'truncated': p.write_bytes(whole[:len(whole)*2//3])
    if damage == 'html': p.write_text('<html>')
    if damage == 'a folder': p.mkdir()
    if damage == 'a dead link': p.symlink_to(p.parent/'nowhere.png')
    if damage == 'a bomb': p.write_bytes(to_png(Image.new('L', (9000, 9000))))

@pytest.mark.parametrize('damage', ['zero bytes', 'truncated', 'html', 'a folder', 'a dead link', 'a bomb'])
def test_torn_drawings_are_counted_and_refused(damage, run, split):
    for name in 's0_0/2.png', 's2_1/3.png': wreck(run/'drawn'/name, damage)
    with pytest.raises(StoryError, match='2 of 18 drawings cannot be read, first .*s0_0/2.png; .* move the folder of such a story away') as e:
        match_drawings(run, split)
    assert '\n' not in str(e.value)

def test_links_are_followed(tmp_path, run, split):
    (tmp_path/'linked').mkdir()
    for p in (run/'drawn').iterdir(): (tmp_path/'linked'/p.name).symlink_to(p)
    assert len(match_drawings(tmp_path/'linked', split)) == 18

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root reads everything')
def test_what_may_not_be_read_is_no_missing_story(run, split):
    (run/'drawn/s0_0').chmod(0)
    try:
        with pytest.raises((StoryError, OSError), match='s0_0'): match_drawings(run, split)
    finally: (run/'drawn/s0_0').chmod(0o755)

def test_grey_and_transparent_drawings_are_pictures(run, split):
    Image.new('LA', (32, 32), (90, 200)).save(run/'drawn/s0_0/1.png')
    Image.new('P', (32, 32)).save(run/'drawn/s0_0/2.png')
    assert match_drawings(run, split).trouble == []

def test_a_second_set_that_lacks_frames_is_left_out(run, split):
    for j in 2, 3: shutil.copytree(run/'drawn', run/f'drawn{j}')
    (run/'drawn2/s1_0/2.png').unlink()
    painting(1, (32, 32)).save(run/'drawn3/s1_0/2.png')                      # another seed
    d = match_drawings(run, split)
    assert [p[0].parts[-3] for p in d.paths] == ['drawn', 'drawn3']
    assert d.trouble == ['1 frame is not in drawn2, which is left out, first s1_0/2.png']
    wreck(run/'drawn3/s0_0/1.png', 'truncated')
    with pytest.raises(StoryError, match='1 of 36 drawings .*drawn3'): match_drawings(run, split)
