"The five corpora as their authors ship them, in small: same layout, same formats, always the same bytes."
import io, json, pickle
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = dict(train=(0, 1), val=(2,), test=(3,))   # which albums are in a split

def picture(k, w=48, h=32):
    "Picture `k` as an array (h, w, 3): a slope of its own colour, with a little noise."
    noise = np.random.default_rng(k).integers(0, 40, (h, w, 3))
    slope = np.linspace(0, 150, h)[:, None, None]*(np.array([k % 3, k % 5, k % 7])/6 + .2)
    return (slope + noise).clip(0, 255).astype('uint8')

def encoded(array, kind='JPEG', orientation=1):
    "As a file of this kind; orientation as EXIF counts it."
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(array).save(out, kind, **(dict(exif=exif, quality=90) if kind == 'JPEG' else {}))
    return out.getvalue()

def _photos(folder, albums, name=str):
    "Five photographs of every album: the third was taken sideways, the fourth is grey, the last is a PNG."
    folder.mkdir(parents=True)
    for a in albums:
        for k in range(5):
            array = picture(10*a + k)
            kind = 'PNG' if k == 4 else 'JPEG'
            data = encoded(array[..., 0] if k == 3 else array, kind, 6 if k == 2 else 1)
            (folder/f'{name(10*a + k)}.{"png" if k == 4 else "jpg"}').write_bytes(data)

def _dump(file, obj):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(obj))

PLACES = 2, 0, 4, 1, 3   # the order of a story's records in the file

def write_ssid(raw, splits=SPLITS, tellings=2):
    "SSID: each record alone in a list, numbers from 1, all pictures in one folder."
    names, raw = dict(train='Train', val='Validation', test='Test'), Path(raw)
    _photos(raw/'SSID_Images', sum(splits.values(), ()))
    for split, albums in splits.items():
        records = [[dict(storytext=f'Telling {t} of album {a},\nplace {k}: “it” | goes on. ', image_order=k + 1,
                         album_id=a, youtube_image_id=f'{10*a + k}', story_id=10*a + t, storylet_id=100*a + 10*t + k)]
                   for a in albums for t in range(tellings) for k in PLACES]
        _dump(raw/f'SSID_Annotations/SSID_{names[split]}.json', dict(annotations=records))
    return raw

def write_vist(raw, splits=SPLITS, tellings=2):
    "VIST, both kinds of texts: ids are strings, numbers from 0, the images listed with their addresses."
    raw, photo = Path(raw), lambda k: str(270_000_000 + k)
    _photos(raw/'images', sum(splits.values(), ()), photo)
    for split, albums in splits.items():
        one = lambda a, k, **more: [dict(photo_flickr_id=photo(10*a + k), album_id=f'7215759{a}', **more)]
        sequences = [one(a, k, original_text=f'Telling {t} of album {a}, place {k}.', text=f'telling {t} .',
                    story_id=str(45_530 + 10*a + t), worker_arranged_photo_order=k, tier='story-in-sequence')
                for a in albums for t in range(tellings) for k in PLACES]
        said = [one(a, k, original_text=text, tier='descriptions-in-isolation', photo_order_in_story=k)
                for a in albums for k in range(5)
                for text in ('A slope.', 'A slope of colours.' + f' Number {k}.'*(k < 3))]
        images = [dict(id=photo(k), album_id=f'7215759{k//10}', url_o=f'https://farm1.example/{photo(k)}_o.jpg')
                  for a in albums for k in range(10*a, 10*a + 5)]
        more = dict(type='vist', images=images, albums=[dict(id=f'7215759{a}', title=f'Album {a}') for a in albums])
        _dump(raw/f'sis/{split}.story-in-sequence.json', dict(more, annotations=sequences))
        _dump(raw/f'dii/{split}.description-in-isolation.json', dict(more, annotations=said))
    return raw

def write_pororo(raw, side=24):
    "PororoSV: two episodes of seven strips of film, names as bytes, texts as a dictionary pickled inside an array."
    raw = Path(raw)
    names = [f'Pororo_ENGLISH1_{e}_ep{e}/{k}.png' for e in (1, 2) for k in range(7)]
    for i, name in enumerate(names):
        (raw/name).parent.mkdir(parents=True, exist_ok=True)
        (raw/name).write_bytes(encoded(picture(i, side, side*(1 + i % 4)), 'PNG'))   # 1 to 4 pictures
    starts = [0, 1, 2, 7, 8, 9]
    np.save(raw/'img_cache4.npy', np.array([names[s] for s in starts], 'S'))
    np.save(raw/'following_cache4.npy', np.array([names[s+1:s+5] for s in starts], 'S'))
    np.save(raw/'train_seen_unseen_ids.npy', np.array([np.array([1, 0]), np.array([2]), np.array([4, 3, 5])], object))
    texts = {n[:-4]: [f'Pororo is at\nplace {i % 7}.', 'Snow.'][:1 + i % 2] for i, n in enumerate(names)}
    np.save(raw/'descriptions.npy', np.array(texts, object))
    return raw

def write_flintstones(raw, side=24):
    "FlintstonesSV: an episode of seven clips, one of five and one of six, five frames each, as arrays."
    raw = Path(raw)
    clips = [f's_01_e_{e:02}_shot_{100*k:06}_{100*k + 75:06}' for e, n in ((1, 7), (2, 5), (3, 6)) for k in range(n)]
    (raw/'video_frames_sampled').mkdir(parents=True)
    for i, clip in enumerate(clips):
        np.save(raw/f'video_frames_sampled/{clip}.npy', np.stack([picture(5*i + t, side, side) for t in range(5)]))
    _dump(raw/'train-val-test_split.json', dict(train=clips[:7], val=clips[7:12], test=clips[12:]))
    follow = {clips[i]: clips[i+1:i+5] for i in (0, 1, 2, 7, 12, 13)} | {clips[3]: clips[4:7]}   # one is too short
    (raw/'following_cache4.pkl').write_bytes(pickle.dumps(follow, 2))
    _dump(raw/'flintstones_annotations_v1-0.json',
          [dict(globalID=c, description=f'Fred and Wilma are at place {i % 7}. ', characters=[dict(entityLabel='Fred')])
           for i, c in enumerate(clips)])
    return raw

WRITE = {'ssid': write_ssid, 'vist-sis': write_vist, 'vist-dii': write_vist, 'pororo': write_pororo,
         'flintstones': write_flintstones}   # corpus -> writer of its raw folder
