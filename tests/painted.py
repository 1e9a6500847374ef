"Stories of random pictures in SSID's manner, drawings of them, and a small network to look at both."
import numpy as np, torch
from PIL import Image

from arldm.files.pictures import to_png
from arldm.data.story import Story, StoryFile, write_stories


def painting(seed, size=(40, 32)): # of smooth random colours
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype='uint8')
    return Image.fromarray(small).resize(size, Image.BICUBIC)

def stories(n_albums=6, each=2, n=3, size=(40, 32), start=0): # `each` stories share the pictures of an album
    for a in range(start, start + n_albums):
        frames = tuple(to_png(painting(1000*a + k, size)) for k in range(n))
        for j in range(each):
            yield Story(f's{a}_{j}', f'a{a}', tuple(f'album {a} frame {k} teller {j}' for k in range(n)), frames)

def story_file(folder, corpus='ssid', **splits): # the path given, splits as lists of stories
    folder.mkdir(parents=True, exist_ok=True)
    write_stories(folder/'stories.h5', splits, corpus)
    return StoryFile(folder/'stories.h5')

def draw(folder, split, first=1, size=(32, 32), picture=None, keep=lambda i: True): # noisy copies, or `picture(i, k)`
    for i in filter(keep, range(len(split))):
        (out := folder/split.ids[i]).mkdir(parents=True, exist_ok=True)
        for k, shown in enumerate(split[i].pictures(), 1):
            if k < first: continue
            x = np.asarray(shown.resize(size), float) + np.random.default_rng([i, k]).normal(0, 25, (*size[::-1], 3))
            im = picture(i, k) if picture else Image.fromarray(x.clip(0, 255).astype('uint8'))
            im.save(out/f'{k}.png')

class Small(torch.nn.Module):
    "Mean colours of four fields; counts the pictures that it is shown."
    side, num_features = 16, 12
    def __init__(self, name='dinov2', gain=1.):
        super().__init__()
        self.name, self.gain, self.seen = name, torch.nn.Parameter(torch.tensor(gain)), 0
    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, self.side, self.side)
        self.seen += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)*self.gain/255

def row(scores, name): # the only row of that name
    found = [r for r in scores['scores'] if r['name'] == name]
    assert len(found) == 1, (name, [r['name'] for r in scores['scores']])
    return found[0]
