"Stories in ViStoryBench's format, in small: story.json with texts in two languages, and pictures of characters."
import json, random
from pathlib import Path

import numpy as np
from PIL import Image

CHARACTERS = {'Ada': '阿达', 'Bo': '波', 'Big Brown Rabbit': '大棕兔', "Mother O'Hara": '奥哈拉妈妈', 'Zoë': '佐伊'}
ENDINGS = '00.jpg', '00.png', '00.jpeg', 'a.PNG'

def _texts(en, ch): return dict(en=en, ch=ch)

def shot(k, names):
    "Shot `k`, in which the characters `names` appear."
    who, wer = ' and '.join(names) or 'Nobody', '和'.join(CHARACTERS[name] for name in names) or '没有人'
    return {'index': k, 'Setting Description': _texts(f'Place {k}, by day.', f'地点{k}，白天。'),
            'Plot Correspondence': _texts(f'{who} cannot rest.', f'{wer}睡不着。'),
            'Characters Appearing': _texts(names, [CHARACTERS[name] for name in names]),
            'Static Shot Description': _texts(f'{who} in place {k}.', f'{wer}在地点{k}。'),
            'Shot Perspective Design': _texts('Long shot, eye level.', '远景，平视。')}

def told(seed, n_shots, n_characters):
    "What story.json holds."
    rng = random.Random(seed)
    names = rng.sample(sorted(CHARACTERS), n_characters)
    shots = [shot(k, rng.sample(names, rng.randint(0, min(2, n_characters)))) for k in range(1, n_shots + 1)]
    about = {name: dict(name_en=name, name_ch=CHARACTERS[name], prompt_en=f'{name} in red.', prompt_ch='红色。',
                        tag='realistic_human', num_of_appearances=n_shots) for name in names}
    return {'Story_type': _texts("Children's Picture Books", '儿童绘本'), 'Shots': shots, 'Characters': about}

def write_story(folder, story):
    "A folder of a story: story.json, which may begin with a byte order mark, and one or two pictures of each character."
    folder.mkdir(parents=True)
    write_told(folder, story, bom=int(folder.name) % 2)
    for i, name in enumerate(story['Characters']):
        rng = np.random.default_rng([int(folder.name), i])
        of_name = folder/'image'/name
        of_name.mkdir(parents=True)
        for file in (ENDINGS[i % 4], 'z.png')[:1 + i % 2]:
            noise = rng.integers(0, 40, (40, 32, 3)) + rng.integers(0, 200, 3)
            kind = 'PNG' if file.lower().endswith('png') else 'JPEG'
            Image.fromarray(noise.astype('uint8')).save(of_name/file, kind)

def write_told(folder, story, bom=False):
    text = json.dumps(story, ensure_ascii=False, indent=1)
    (folder/'story.json').write_text(text, encoding='utf-8-sig' if bom else 'utf-8')

def write_vistory_data(root, n=3, longest=7):
    "A folder of `n` stories 01, 02, …, of 1 to `longest` shots; returns {story: what its story.json holds}."
    stories = {}
    for i in range(1, n + 1):
        name = f'{i:02d}'
        stories[name] = told(i, 1 + (3*i) % longest, 1 + i % len(CHARACTERS))
        write_story(Path(root)/name, stories[name])
    return stories
