"The autoencoder of a small model learns the pictures of a run, once, and is found again."
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from arldm.core import StoryError
from arldm.data.dataset import StoryDataset, Vocabulary, word_tokenizers
from arldm.data.story import Story, StoryFile, write_stories
from arldm.files.pictures import to_png
from arldm.model.config import SIZES, make_vae
from arldm.train.autoencoder import adapt_autoencoder, autoencoder_loss, keep_autoencoder
from arldm.train.digest import part_digest
from PIL import Image

def dataset(folder, seed=0):
    "Three stories of 2, 3 and 4 flat pictures each."
    rng = np.random.default_rng(seed)
    stories = []
    for i in range(3):
        pictures = tuple(to_png(Image.new('RGB', (48, 40), tuple(rng.integers(256, size=3).tolist()))) for _ in range(2 + i))
        stories.append(Story(str(i), str(i), ('a boat',)*len(pictures), pictures))
    write_stories(folder/f'{seed}.h5', dict(train=stories), 'ssid')
    vocab = Vocabulary(*word_tokenizers(['a boat'], folder/'words'), 8)
    return StoryDataset(StoryFile(folder/f'{seed}.h5')['train'], vocab, 32, 16, train=True, crops=1)

@pytest.fixture
def stories(tmp_path): return dataset(tmp_path)

def vae(seed=0):
    torch.manual_seed(seed)
    return make_vae(**SIZES['tiny']['vae']).eval()

def test_loss_is_error_plus_kl():
    "Against the formula in numpy, with a weight for each pixel."
    net, frames = vae(), torch.rand(2, 3, 32, 32)*2 - 1
    weight = torch.randint(1, 10, (2, 1, 32, 32))
    with torch.no_grad():
        loss = autoencoder_loss(net, frames, weight, torch.Generator().manual_seed(5)).item()
        posterior = net.encode(frames).latent_dist
        z = posterior.mean + posterior.std*torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
        d = (net.decode(z).sample - frames).double().numpy()
        kl = .5*(posterior.mean**2 + posterior.var - 1 - posterior.logvar).double().mean().item()
    assert loss == pytest.approx((weight.numpy()*(abs(d) + d**2)).mean() + 1e-3*kl, rel=1e-5)

def test_learns_and_measures_its_scale(stories):
    "The loss falls; scaled latents have a standard deviation of 1; nothing is left to train."
    net = vae()
    losses = list(adapt_autoencoder(net, stories, 30))
    assert np.mean(losses[-5:]) < .8*np.mean(losses[:5])
    frames = torch.cat([stories[i]['frames'] for i in range(3)]).float()/127.5 - 1
    with torch.no_grad(): latents = net.encode(frames).latent_dist.mean
    assert (latents.std()*net.config.scaling_factor).item() == pytest.approx(1, abs=1e-3)
    assert not net.training and not any(w.requires_grad for w in net.parameters())

def test_kept_and_found_again(tmp_path, stories, monkeypatch):
    "A second process gets the very weights of the first without training; other facts are refused."
    first, second = vae(), vae()
    torch.manual_seed(1)
    keep_autoencoder(tmp_path/'kept', first, stories, 4, quiet=True)
    assert part_digest(first) != part_digest(second)
    calls = []
    monkeypatch.setattr('arldm.train.autoencoder.adapt_autoencoder', lambda *_: calls.append(1) or iter(()))
    keep_autoencoder(tmp_path/'kept', second, stories, 4, quiet=True)
    assert part_digest(first) == part_digest(second) and not calls
    assert part_digest(AutoencoderKL.from_pretrained(tmp_path/'kept')) == part_digest(first)
    with pytest.raises(StoryError, match='made with steps=4, not 5'):
        keep_autoencoder(tmp_path/'kept', vae(), stories, 5, quiet=True)
    with pytest.raises(StoryError, match='made with start='): keep_autoencoder(tmp_path/'kept', vae(1), stories, 4, quiet=True)
    with pytest.raises(StoryError, match='made with stories='):
        keep_autoencoder(tmp_path/'kept', vae(), dataset(tmp_path, 1), 4, quiet=True)
    for change in dict(crops=3), dict(legacy=True):   # other parts of the same pictures
        others = StoryDataset(stories.split, stories.vocab, 32, 16, train=True, **dict(crops=1) | change)
        with pytest.raises(StoryError, match=f'made with {next(iter(change))}='):
            keep_autoencoder(tmp_path/'kept', vae(), others, 4, quiet=True)

def test_does_not_depend_on_what_was_random_before(stories):
    nets = []
    for seed in 3, 4:
        net = vae()
        torch.manual_seed(seed)
        list(adapt_autoencoder(net, stories, 3, seed=7))
        nets.append(part_digest(net))
    assert nets[0] == nets[1]

def test_a_full_disk(tmp_path, stories, monkeypatch):
    "It is one line, and leaves nothing that another run would take for an autoencoder."
    def full(*_): raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    monkeypatch.setattr(AutoencoderKL, 'save_pretrained', full)
    with pytest.raises(StoryError, match='kept could not be written .*No space left on device.*; make room and run the same command again$'):
        keep_autoencoder(tmp_path/'kept', vae(), stories, 1, quiet=True)
    assert not [path.name for path in tmp_path.iterdir() if 'kept' in path.name]

def test_a_diverged_loss_is_an_error(stories):
    "One line at the step; weights that are no numbers are never kept."
    net = vae()
    with torch.no_grad(): net.encoder.conv_in.weight.fill_(float('nan'))
    with pytest.raises(StoryError, match='^the loss of the autoencoder is nan at step 1; start a new run with'):
        list(adapt_autoencoder(net, stories, 3))
