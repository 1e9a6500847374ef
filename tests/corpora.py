"The five corpora as their authors ship them, in small: same layout and formats, always the same."
import io, json, pickle
from itertools import product
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
    out = io.BytesIO()
    options = {}
    if kind == 'JPEG':
        exif = Image.Exif()
        exif[0x112] = orientation
        options = dict(exif=exif, quality=90)
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()

def _photos(folder, albums, name=str):
    "Five photographs of every album: the third taken sideways, the fourth grey, the last a PNG."
    folder.mkdir(parents=True)
    for a in albums:
        for k in range(5):
            array = picture(10*a + k)
            kind, suffix = ('PNG', 'png') if k == 4 else ('JPEG', 'jpg')
            data = encoded(array[..., 0] if k == 3 else array, kind, 6 if k == 2 else 1)
            (folder/f'{name(10*a + k)}.{suffix}').write_bytes(data)

def _dump(file, obj):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(obj))

PLACES = 2, 0, 4, 1, 3   # the order of a story's records in the file

def write_ssid(raw, splits=SPLITS, tellings=2):
    "SSID: each record alone in a list, numbers from 1, all pictures in one folder."
    folder = Path(raw)
    names = dict(train='Train', val='Validation', test='Test')
    _photos(folder/'SSID_Images', sum(splits.values(), ()))
    for split, albums in splits.items():
        records = []
        for a, t, k in product(albums, range(tellings), PLACES):
            records.append([dict(
                storytext=f'Telling {t} of album {a},\nplace {k}: “it” | goes on. ', image_order=k + 1,
                album_id=a, youtube_image_id=f'{10*a + k}', story_id=10*a + t,
                storylet_id=100*a + 10*t + k)])
        _dump(folder/f'SSID_Annotations/SSID_{names[split]}.json', dict(annotations=records))
    return folder

def _vist_photo(k): return str(270_000_000 + k)

def _vist_record(a, k, **more):
    return [dict(photo_flickr_id=_vist_photo(10*a + k), album_id=f'7215759{a}', **more)]

def _vist_sequences(albums, tellings):
    records = []
    for a, t, k in product(albums, range(tellings), PLACES):
        records.append(_vist_record(
            a, k, original_text=f'Telling {t} of album {a}, place {k}.', text=f'telling {t} .',
            story_id=str(45_530 + 10*a + t), worker_arranged_photo_order=k,
            tier='story-in-sequence'))
    return records

def _vist_descriptions(albums):
    records = []
    for a, k in product(albums, range(5)):
        longer = f' Number {k}.' if k < 3 else ''
        for text in 'A slope.', f'A slope of colours.{longer}':
            records.append(_vist_record(a, k, original_text=text, tier='descriptions-in-isolation',
                                        photo_order_in_story=k))
    return records

def write_vist(raw, splits=SPLITS, tellings=2):
    "VIST, both kinds of texts: ids are strings, numbers from 0, the images listed with addresses."
    folder = Path(raw)
    _photos(folder/'images', sum(splits.values(), ()), _vist_photo)
    for split, albums in splits.items():
        images = []
        for a, k in product(albums, range(5)):
            photo = _vist_photo(10*a + k)
            url = f'https://farm1.example/{photo}_o.jpg'
            images.append(dict(id=photo, album_id=f'7215759{a}', url_o=url))
        titles = [dict(id=f'7215759{a}', title=f'Album {a}') for a in albums]
        more = dict(type='vist', images=images, albums=titles)
        _dump(folder/f'sis/{split}.story-in-sequence.json',
              dict(more, annotations=_vist_sequences(albums, tellings)))
        _dump(folder/f'dii/{split}.description-in-isolation.json',
              dict(more, annotations=_vist_descriptions(albums)))
    return folder

def write_pororo(raw, side=24):
    "PororoSV: two episodes of seven film strips, names as bytes, texts as a pickled dictionary."
    folder = Path(raw)
    names = [f'Pororo_ENGLISH1_{e}_ep{e}/{k}.png' for e, k in product((1, 2), range(7))]
    texts = {}
    for i, name in enumerate(names):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        strip = picture(i, side, side*(1 + i % 4))   # 1 to 4 pictures
        (folder/name).write_bytes(encoded(strip, 'PNG'))
        texts[name[:-4]] = [f'Pororo is at\nplace {i % 7}.', 'Snow.'][:1 + i % 2]
    starts = [0, 1, 2, 7, 8, 9]
    splits = [np.array([1, 0]), np.array([2]), np.array([4, 3, 5])]
    np.save(folder/'img_cache4.npy', np.array([names[s] for s in starts], 'S'))
    np.save(folder/'following_cache4.npy', np.array([names[s+1:s+5] for s in starts], 'S'))
    np.save(folder/'train_seen_unseen_ids.npy', np.array(splits, object))
    np.save(folder/'descriptions.npy', np.array(texts, object))
    return folder

def write_flintstones(raw, side=24):
    "FlintstonesSV: episodes of seven, five and six clips, five frames each, as arrays."
    folder = Path(raw)
    clips = []
    for e, n in (1, 7), (2, 5), (3, 6):
        for k in range(n): clips.append(f's_01_e_{e:02}_shot_{100*k:06}_{100*k + 75:06}')
    frames = folder/'video_frames_sampled'
    frames.mkdir(parents=True)
    annotations = []
    for i, clip in enumerate(clips):
        np.save(frames/f'{clip}.npy', np.stack([picture(5*i + t, side, side) for t in range(5)]))
        annotations.append(dict(globalID=clip, description=f'Fred and Wilma are at place {i % 7}. ',
                                characters=[dict(entityLabel='Fred')]))
    _dump(folder/'train-val-test_split.json',
          dict(train=clips[:7], val=clips[7:12], test=clips[12:]))
    following = {clips[i]: clips[i+1:i+5] for i in (0, 1, 2, 7, 12, 13)}
    following[clips[3]] = clips[4:7]   # one is too short
    (folder/'following_cache4.pkl').write_bytes(pickle.dumps(following, 2))
    _dump(folder/'flintstones_annotations_v1-0.json', annotations)
    return folder

# corpus -> writer of its raw folder
WRITE = {'ssid': write_ssid, 'vist-sis': write_vist, 'vist-dii': write_vist, 'pororo': write_pororo,
         'flintstones': write_flintstones}
