"A pipeline opens from disk and from the hub, in our class, in a subclass and in diffusers, and is pushed with a card."
import copy, json, re, shutil, sys
from pathlib import Path, PureWindowsPath

import pytest, torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from huggingface_hub import constants
from huggingface_hub.repocard import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from hub import Repo, read_folder, serve
from arldm.cli.convert import convert
from arldm.cli.draw import draw
from arldm.cli.train import train
from arldm.core import StoryError, asset
from arldm.data.story import Story, StoryFile, write_stories
from arldm.draw.pipeline import StoryOutput, StoryPipeline
from arldm.draw.pipeline_folder import EXAMPLE, card_rows, part_code, publish, pushed_files, training_facts
from arldm.files.manifest import write_manifest
from arldm.model.arldm import ARLDM
from arldm.model.config import PARTS, pipeline_index
from arldm.model.hub import hub_name
from arldm.settings import resolve
from arldm.toy.corpus import write_toy
from arldm.train.setup import make_model

GOOD = 'hf_good'

class MyPipeline(StoryPipeline):
    "A subclass that other processes can import."

@pytest.fixture(scope='module')
def tiny():
    vocab = ARLDM.load(asset('toy/arldm')).vocab
    torch.manual_seed(0)
    pipe = StoryPipeline.from_model(ARLDM.create('tiny', vocab, resolution=32).eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope='module')
def saved(tiny, tmp_path_factory):
    tiny.save_pretrained(folder := tmp_path_factory.mktemp('saved')/'stories')
    return folder

@pytest.fixture
def hub(monkeypatch, tmp_path, saved):
    "A hub with one pipeline, `someone/stories`; code from it is kept in a folder of the test."
    monkeypatch.setattr(dynamic_modules_utils, 'HF_MODULES_CACHE', str(tmp_path/'modules'))
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path/'token'))
    monkeypatch.delenv('HF_TOKEN', raising=False)
    with serve(monkeypatch, tmp_path/'cache') as hub:
        hub.repos['someone/stories'] = Repo(read_folder(saved))
        yield hub

def same(pipe, other):
    state = other.model.state_dict()
    return all(torch.equal(weight, state[name]) for name, weight in pipe.model.state_dict().items())

def one_line(f, *args, **options):
    with pytest.raises(StoryError) as e: f(*args, **options)
    assert '\n' not in str(e.value)
    return str(e.value)


# opening from the hub

def test_hub(hub, tiny, tmp_path):
    hub.repos['someone/stories'].branches['main'] |= {
        'README.md': b'notes', 'memory_encoder/arldm.model.encoders.py': b'raise SystemExit', 'unet/model.bin': b'0'}
    pipe = StoryPipeline.from_pretrained('someone/stories')
    assert same(pipe, tiny) and pipe.name_or_path == 'someone/stories'
    assert {Path(path).suffix for path in hub.paths()} == {'.json', '.safetensors'}
    hub.requests.clear()
    assert same(StoryPipeline.from_pretrained(Path('someone/stories')), tiny)
    assert hub.paths() == [] and len(hub.requests) == 1    # is it still the same commit?
    hub.requests.clear()
    assert same(StoryPipeline.from_pretrained('someone/stories', local_files_only=True), tiny)
    assert hub.requests == []
    assert same(StoryPipeline.from_model(ARLDM.load('someone/stories')), tiny)

def test_hub_without_network(hub, tiny, monkeypatch):
    StoryPipeline.from_pretrained('someone/stories')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    hub.requests.clear()
    assert same(StoryPipeline.from_pretrained('someone/stories'), tiny) and hub.requests == []

def test_folder_before_hub(hub, saved, tiny, tmp_path, monkeypatch):
    "What is a folder here is not looked for on the hub."
    shutil.copytree(saved, tmp_path/'someone'/'stories')
    monkeypatch.chdir(tmp_path)
    assert same(StoryPipeline.from_pretrained('someone/stories'), tiny) and hub.requests == []

def test_names():
    for where in 'user/name', Path('user/name'), PureWindowsPath('user/name'), PureWindowsPath('user\\name'):
        assert hub_name(where) == 'user/name'
    for where in 'name', './name', '/user/name', 'a/b/c', '~/name', 'user/name/', 'user/na me', '', 'a--b/c', Path('..')/'name':
        assert hub_name(where) == ''

def test_options(hub, tiny, tmp_path):
    "`revision`, `token`, `cache_dir`, `force_download` and parts to use instead reach the download."
    repo = hub.repos['someone/stories']
    repo.gated = True
    repo.branches['old'] = {name: data for name, data in repo.branches['main'].items() if not name.startswith('unet/')}
    repo.branches['main']['history/diffusion_pytorch_model.safetensors'] = b'0'
    pipe = StoryPipeline.from_pretrained('someone/stories', revision='old', token=GOOD, cache_dir=tmp_path/'own', unet=tiny.unet)
    assert same(pipe, tiny) and pipe.unet is tiny.unet
    assert (tmp_path/'own'/'models--someone--stories').is_dir() and not (tmp_path/'cache').exists()
    assert {token for method, path, token in hub.requests if '/someone/' in path} == {f'Bearer {GOOD}'}
    assert not [path for path in hub.paths() if path.startswith('unet/')]
    n_files = len(hub.paths())
    hub.requests.clear()
    StoryPipeline.from_pretrained('someone/stories', revision='old', token=GOOD, cache_dir=tmp_path/'own', unet=tiny.unet,
                                  force_download=True)
    assert len(hub.paths()) == n_files

def test_variant(hub, tiny, tmp_path):
    "Weights of the variant where there are such, and no others."
    half = tmp_path/'half'
    tiny.save_pretrained(half, variant='fp16')
    main = hub.repos['someone/stories'].branches['main']
    main |= {name: data for name, data in read_folder(half).items() if '.fp16.' in name}
    del main['unet/diffusion_pytorch_model.fp16.safetensors']
    assert same(StoryPipeline.from_pretrained('someone/stories', variant='fp16'), tiny)
    weights = {path for path in hub.paths() if path.endswith('.safetensors')}
    assert weights == {'unet/diffusion_pytorch_model.safetensors', 'text_encoder/model.fp16.safetensors'} | {
        f'{part}/diffusion_pytorch_model.fp16.safetensors' for part in ('vae', 'memory_encoder', 'history')}
    hub.requests.clear()
    assert same(StoryPipeline.from_pretrained('someone/stories', cache_dir=tmp_path/'other'), tiny)
    assert not [path for path in hub.paths() if 'fp16' in path]

def test_refused(hub, monkeypatch):
    "Every way in which a name on the hub cannot be opened gets a line that says what to do."
    url = hub.url
    def line(name='someone/stories', **options): return one_line(StoryPipeline.from_pretrained, name, **options)
    assert line('someone/else') == (f'someone/else: no such folder here, and {url} shows no model of this name; if it is private, '
                                    'log in with hf auth login, or pass token=')
    assert line(revision='v2') == f"someone/stories: {url} has no revision 'v2' of it"
    assert line(local_files_only=True) == ('someone/stories: no such folder here, and it is not among the downloads from the hub; '
                                           'local_files_only and HF_HUB_OFFLINE allow no download')
    hub.repos['someone/gated'] = Repo(hub.repos['someone/stories'].branches['main'], gated=True)
    assert line('someone/gated') == (f'someone/gated is gated: ask for access on {url}/someone/gated, then log in with '
                                     'hf auth login, or pass token=')
    hub.repos['someone/text'] = Repo({'config.json': b'{}'})
    assert line('someone/text') == 'someone/text: not a pipeline; its model_index.json is missing'
    index = {'_class_name': 'StableDiffusionPipeline', 'unet': ['diffusers', 'UNet2DConditionModel']}
    hub.repos['someone/sd'] = Repo({'model_index.json': json.dumps(index).encode(), 'unet/model.safetensors': b'gigabytes'})
    hub.requests.clear()
    assert line('someone/sd') == ('someone/sd: expected a StoryPipeline, as arldm-train makes it, found a '
                                  'StableDiffusionPipeline')
    assert hub.paths() == ['model_index.json']
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert re.fullmatch('someone/stories: no such folder here, and it cannot be downloaded from http://127.0.0.1:9 '
                        '\\(.*refused.*\\); try again when the network is back', line())
    assert line('stories') == ('stories: no such folder; expected a pipeline folder, a run folder, or a name on the hub such as '
                               'user/name')

@pytest.mark.parametrize('spoil,said', [
    ('nan', 'someone/stories/history: embedding.weight holds NaN or infinite numbers; use earlier weights, or another copy'),
    ('missing', 'someone/stories/history: 1 tensors are missing, among them'),
    ('cut', 'someone/stories: expected a pipeline, but loading failed'),
    ('vocabulary', 'someone/stories/tokenizer: its vocabulary is missing')])
def test_checked(hub, saved, tmp_path, spoil, said):
    "A pipeline from the hub is checked as a folder is."
    name = 'history/diffusion_pytorch_model.safetensors'
    state = load_file(saved/name)
    key = sorted(state)[0]
    files = hub.repos['someone/stories'].branches['main']
    if spoil == 'nan': state[key][0] = float('nan')
    if spoil == 'missing': del state[key]
    save_file(state, tmp_path/'spoiled', metadata={'format': 'pt'})
    files[name] = (tmp_path/'spoiled').read_bytes()
    if spoil == 'cut': files['unet/diffusion_pytorch_model.safetensors'] = b'0'*100
    if spoil == 'vocabulary': del files['tokenizer/tokenizer.json']
    line = one_line(StoryPipeline.from_pretrained, 'someone/stories')
    assert line.startswith(said.replace('embedding.weight', key)) or line.startswith('someone/stories: expected a pipeline, but')
    if spoil == 'cut': assert line.endswith('; to download it again, pass force_download=True')

def test_stranger_names_module(hub, saved):
    "The hub cannot have a module imported that was not imported before."
    index = json.loads((saved/'model_index.json').read_text())
    index['memory_encoder'] = ['antigravity', 'Encoder']
    hub.repos['someone/stories'].branches['main']['model_index.json'] = json.dumps(index).encode()
    assert one_line(StoryPipeline.from_pretrained, 'someone/stories') == (
        'someone/stories: its memory encoder is Encoder of antigravity; if you trust that module, import antigravity first')
    assert 'antigravity' not in sys.modules


@pytest.mark.parametrize('file', ['unet/diffusers.py', 'text_encoder/transformers.py'])
def test_code_beside_a_part_of_a_library(saved, tmp_path, file):
    "diffusers would run it once code is trusted, which it is for our own files."
    folder = tmp_path/'stories'
    shutil.copytree(saved, folder)
    for name, text in part_code(pipeline_index(folder)).items(): (folder/name).write_text(text)
    StoryPipeline.from_pretrained(folder)
    (folder/file).write_text('1/0')
    assert one_line(StoryPipeline.from_pretrained, folder).endswith(
        f'{file} is code of others; read it, and if you trust it, pass trust_remote_code=True')


# opening by diffusers

def test_diffusers_opens_folder(hub, saved, tiny):
    for custom in 'pipeline', str(saved):
        pipe = DiffusionPipeline.from_pretrained(saved, custom_pipeline=custom, trust_remote_code=True)
        assert type(pipe) is StoryPipeline and same(pipe, tiny)
    with pytest.raises(AttributeError, match='diffusers has no attribute StoryPipeline'): DiffusionPipeline.from_pretrained(saved)
    with pytest.raises(ValueError, match='trust_remote_code=True') as e:
        DiffusionPipeline.from_pretrained(saved, custom_pipeline='pipeline')
    assert not isinstance(e.value, StoryError)

def test_diffusers_opens_hub(hub, tiny):
    tiny.push_to_hub('me/stories', token=GOOD, strip=False)
    for custom in 'pipeline', 'me/stories':
        pipe = DiffusionPipeline.from_pretrained('me/stories', custom_pipeline=custom, trust_remote_code=True)
        assert type(pipe) is StoryPipeline and same(pipe, tiny)
    with pytest.raises(AttributeError, match='StoryPipeline'): DiffusionPipeline.from_pretrained('me/stories')
    # its code lies in the cache now; it is ours, so nobody has to trust it
    assert same(StoryPipeline.from_pretrained('me/stories', local_files_only=True), tiny)
    hub.repos['me/stories'].branches['main']['history/arldm.model.history.py'] = b'1/0'
    with pytest.raises(ZeroDivisionError):
        DiffusionPipeline.from_pretrained('me/stories', custom_pipeline='pipeline', trust_remote_code=True)
    assert one_line(StoryPipeline.from_pretrained, 'me/stories') == (
        'me/stories: history/arldm.model.history.py is code of others; read it, and if you trust it, pass trust_remote_code=True')
    with pytest.raises(StoryError, match='division by zero'): StoryPipeline.from_pretrained('me/stories', trust_remote_code=True)


def test_own_encoder(saved, tmp_path, monkeypatch, hub):
    "pipeline.py imports the module of a memory encoder of one's own, which diffusers does not."
    (tmp_path/'other_encoder.py').write_text(
        # diffusers looks for ModelMixin in the module itself
        'from diffusers import ModelMixin\nfrom arldm.model.encoders import MemoryEncoder\nclass Other(MemoryEncoder): pass')
    monkeypatch.syspath_prepend(tmp_path)
    from other_encoder import Other
    own = Other.from_pretrained(saved/'memory_encoder')
    StoryPipeline.from_pretrained(saved, memory_encoder=own).save_pretrained(tmp_path/'own')
    assert 'import other_encoder\n' in (tmp_path/'own'/'pipeline.py').read_text()
    monkeypatch.delitem(sys.modules, 'other_encoder')
    pipe = DiffusionPipeline.from_pretrained(tmp_path/'own', custom_pipeline='pipeline', trust_remote_code=True)
    assert type(pipe.memory_encoder).__name__ == 'Other' and type(pipe) is StoryPipeline


# subclasses

def test_subclass(tiny, tmp_path):
    MyPipeline(**tiny.components).save_pretrained(tmp_path)
    assert json.loads((tmp_path/'model_index.json').read_text())['_class_name'] == 'MyPipeline'
    for kind in MyPipeline, StoryPipeline:
        pipe = kind.from_pretrained(tmp_path)
        assert type(pipe) is kind and same(pipe, tiny)
    assert (tmp_path/'pipeline.py').read_text().endswith(f'from {__name__} import MyPipeline\n')
    # of one that no other process can import, the base is named
    class Inner(StoryPipeline): pass
    Inner(**tiny.components).save_pretrained(tmp_path)
    assert (tmp_path/'pipeline.py').read_text().endswith('from arldm.draw.pipeline import StoryPipeline\n')
    assert type(Inner.from_pretrained(tmp_path)) is Inner

@pytest.mark.parametrize('kind', ['StableDiffusionPipeline', None, ['pipeline', 'StoryPipeline']])
def test_other_kinds(saved, tmp_path, kind):
    shutil.copytree(saved, tmp_path/'p')
    index = json.loads((saved/'model_index.json').read_text()) | {'_class_name': kind}
    if isinstance(kind, str): del index['history']
    (tmp_path/'p'/'model_index.json').write_text(json.dumps(index))
    for opener in StoryPipeline, MyPipeline:
        assert one_line(opener.from_pretrained, tmp_path/'p') == (
            f'{tmp_path/"p"}: expected a StoryPipeline, as arldm-train makes it, found a {kind}')


# pushing to the hub

def test_push(hub, tiny, saved):
    tiny.push_to_hub('me/stories', 'First stories', token=GOOD, strip=False)
    files = hub.repos['me/stories'].branches['main']
    assert hub.commits == ['First stories']
    assert files.keys() == {*read_folder(saved), 'README.md', 'history/arldm.model.history.py',
                            'memory_encoder/arldm.model.encoders.py'}
    assert files['history/arldm.model.history.py'] == b'from arldm.model.history import HistoryEmbeddings\n'
    pipe = StoryPipeline.from_pretrained('me/stories')
    assert same(pipe, tiny)

def test_card(hub, tiny, tmp_path, monkeypatch):
    "The header is what the hub reads; the code in the card runs as it stands."
    tiny.push_to_hub('me/stories', token=GOOD)
    files = hub.repos['me/stories'].branches['main']
    text = files['README.md'].decode()
    card = ModelCard(text)
    assert card.data.to_dict() == dict(library_name='diffusers', pipeline_tag='text-to-image', tags=['arldm', 'story-visualization'])
    (tmp_path/'strip.png').write_bytes(files['strip.png'])
    assert Image.open(tmp_path/'strip.png').width > 3*32 and '![A story drawn by this model](strip.png)' in text
    for row in '| Frames | 32 × 32 pixels |', '| Captions | 36 tokens |', f'| Scheduler | {type(tiny.scheduler).__name__} |':
        assert row in text
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(StoryPipeline, '__call__', lambda self, captions: drawn.append((self, captions)) or StoryOutput(
        [], [[Image.new('RGB', (32, 32))]*len(captions)], [captions]))
    ours, theirs = re.findall('```python\n(.*?)```', text, re.S)
    exec(ours, {})
    exec(theirs, {})
    assert [captions for _, captions in drawn] == [EXAMPLE, EXAMPLE] and (tmp_path/'story.png').is_file()
    assert all(same(pipe, tiny) for pipe, _ in drawn)

def test_card_of_run(hub, tiny, tmp_path):
    "A pipeline of a run tells what it was trained on, but no path."
    run = tmp_path/'private'/'run'
    tiny.save_pretrained(run/'pipeline')
    (run/'settings.json').write_text(json.dumps(dict(
        corpus='ssid', task='continuation', model='sd-1.5', max_train_steps=12000, train_batch_size=4,
        gradient_accumulation_steps=2, processes=3, data='/home/me/secret.h5')))
    for folder in run, run/'pipeline':
        pipe = StoryPipeline.from_pretrained(folder)
        pipe.push_to_hub('me/run', token=GOOD, strip=False)
        text = hub.repos.pop('me/run').branches['main']['README.md'].decode()
        assert '| Corpus | ssid |' in text and '| Training | 12,000 steps of 24 stories |' in text
        assert 'secret' not in text and 'private' not in text and 'strip.png' not in text
        data = ModelCard(text).data
        assert data.base_model == 'stable-diffusion-v1-5/stable-diffusion-v1-5' and 'story-continuation' in data.tags

def test_card_tells_the_steps_of_the_pipeline(tiny, tmp_path):
    "A run that is to train on to more steps has a pipeline of fewer."
    run = tmp_path/'run'
    tiny.save_pretrained(run/'pipeline')
    (run/'settings.json').write_text(json.dumps(dict(max_train_steps=5000)))
    assert training_facts(run) == training_facts(run/'pipeline') == dict(max_train_steps=5000)
    write_manifest(run/'pipeline', dict(step=1000))
    assert training_facts(run) == training_facts(run/'pipeline') == dict(max_train_steps=1000)

def test_names_in_card(tiny):
    "Names with a token of their own are listed if they are few."
    assert 'Names' not in card_rows(tiny)
    pipe = StoryPipeline(**tiny.components | dict(tokenizer=copy.deepcopy(tiny.tokenizer)))
    pipe.tokenizer.add_tokens(['poby', 'loopy'])
    assert card_rows(pipe)['Names'] == 'loopy, poby'
    pipe.tokenizer.add_tokens([f'name{i}' for i in range(20)])
    assert 'Names' not in card_rows(pipe)

def test_strip(hub, tiny):
    "A strip of one's own is shown, with its captions; a large model draws none unasked."
    captions = ['it jumps', 'it rests']
    out = StoryOutput([], [[Image.new('RGB', (32, 32), 'red')]*2], [captions])
    tiny.push_to_hub('me/stories', token=GOOD, strip=out)
    files = hub.repos['me/stories'].branches['main']
    assert files['strip.png'][:4] == b'\x89PNG' and f'pipe({captions!r})' in files['README.md'].decode()
    first = files['README.md']
    # a card that is there stays; a strip that is passed replaces the one before
    tiny.push_to_hub('me/stories', token=GOOD, strip=Image.new('RGB', (8, 8)))
    assert files['README.md'] == first and len(files['strip.png']) < 200
    before = files['strip.png']
    tiny.push_to_hub('me/stories', token=GOOD)
    assert files['strip.png'] == before

def test_large_model_draws_no_strip(hub, tiny, monkeypatch):
    monkeypatch.setattr('arldm.draw.pipeline_folder._SMALL', 1000)
    monkeypatch.setattr(StoryPipeline, '__call__', None)
    tiny.push_to_hub('me/stories', token=GOOD)
    assert 'strip.png' not in hub.repos['me/stories'].branches['main']

def test_save_and_push(hub, tiny, saved, tmp_path):
    "What lies in the folder beside the pipeline stays there, and a README of one's own is the one that is pushed."
    folder = tmp_path/'stories'
    folder.mkdir()
    (folder/'README.md').write_text('mine')
    (folder/'diary.txt').write_text('private')
    tiny.save_pretrained(folder, push_to_hub=True, repo_id='me/stories', token=GOOD)
    files = hub.repos['me/stories'].branches['main']
    assert files['README.md'] == b'mine' and 'diary.txt' not in files and 'strip.png' not in files
    assert read_folder(folder) == read_folder(saved) | {'README.md': b'mine', 'diary.txt': b'private'}

def test_push_refused(hub, tiny, saved, monkeypatch):
    line = one_line(publish, tiny, saved, 'me/stories', False)
    assert line.startswith('me/stories: could not be pushed (') and line.endswith(
        '; log in with hf auth login, or pass token= of one who may write there')
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert 'could not be pushed' in one_line(publish, tiny, saved, 'me/stories', False, token=GOOD)
    assert 'could not be pushed' in one_line(publish, tiny, saved, 'a b', False, token=GOOD)


# commands

def test_draw_by_name(hub, saved, tmp_path, monkeypatch):
    "arldm-draw draws with a pipeline on the hub as with its folder, and into no folder of its name."
    monkeypatch.chdir(tmp_path)
    Path('story.txt').write_text('it jumps\n')
    options = dict(captions='story.txt', num_inference_steps=1)
    draw('someone/stories', out='a', **options)
    draw(saved, out='b', **options)
    assert (tmp_path/'a'/'1.png').read_bytes() == (tmp_path/'b'/'1.png').read_bytes()
    assert not (tmp_path/'someone').exists()
    with pytest.raises(StoryError, match='; name another place: --out FOLDER'):
        draw('someone/stories', data=toy_stories(tmp_path), split='train')
    url = hub.url
    assert one_line(draw, 'runs/new', **options) == (
        f'runs/new: no pipeline there, and {url} shows no model of this name; train it first: arldm-train runs/new')
    Path('runs/new').mkdir(parents=True)
    assert one_line(draw, 'runs/new', **options) == 'runs/new: no pipeline there; train it first: arldm-train runs/new'

def toy_stories(folder):
    "A file of two small stories."
    red = Image.new('RGB', (32, 32), 'red')
    write_stories(folder/'toy.h5', dict(train=[Story(str(i), '', ['it jumps']*2, [red]*2) for i in range(2)]), 'toy')
    return folder/'toy.h5'

def test_train_from_name(hub, tiny, tmp_path):
    "arldm-train starts from a pipeline on the hub, whether or not the preset names BLIP weights."
    file = StoryFile(toy_stories(tmp_path))
    for blip in '', 'blip-large':
        model = make_model(resolve('tiny', model='someone/stories', blip=blip, resolution=32), file, tmp_path, quiet=True)
        assert same(StoryPipeline.from_model(model), tiny)
    line = one_line(make_model, resolve('tiny', model='someone/else', resolution=32), file, tmp_path, quiet=True)
    assert line == (
        f'someone/else: no such folder here, and {hub.url} shows no model of this name; if it is private, log in with hf auth '
        'login, or pass token=; --model takes toy-base, toy-arldm, a size (full, toy, tiny), a pipeline or run, here or on the '
        'hub, or a Stable Diffusion model with BLIP weights beside it: --blip model_large.pth')
    hub.repos['someone/sd'] = Repo({'model_index.json': b'{"_class_name": "StableDiffusionPipeline"}'})
    line = one_line(make_model, resolve('tiny', model='someone/sd', resolution=32), file, tmp_path, quiet=True)
    assert line.startswith('someone/sd: expected a StoryPipeline, as arldm-train makes it, found a StableDiffusionPipeline; --model')


def test_no_path_is_pushed(saved, tmp_path):
    "diffusers notes in a configuration where a part was read."
    StoryPipeline.from_pretrained(saved).save_pretrained(tmp_path)
    assert str(saved) in (tmp_path/'unet/config.json').read_text()
    files = pushed_files(tmp_path)
    for name, content in files.items():
        if name.endswith('.json'): assert str(saved).encode() not in (content if isinstance(content, bytes) else content.read_bytes()), name
    assert json.loads(files['unet/config.json'])['_class_name'] == 'UNet2DConditionModel'


# a run that is pushed at its end

@pytest.fixture(scope='module')
def three_stories(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_toy(folder/'raw', (3, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'toy.h5', quiet=True)
    return folder/'toy.h5'

def test_run_is_pushed(hub, three_stories, tmp_path, monkeypatch, capsys):
    "A push that fails leaves a finished run, which the command of its message pushes."
    monkeypatch.setenv('HF_TOKEN', GOOD)
    monkeypatch.setattr('arldm.draw.validation_strips.STRIP_STEPS', 1)
    run = tmp_path/'my-run'
    how = dict(preset='tiny', resolution=16, train_batch_size=2, max_train_steps=2, lora_rank=2, push_to_hub=True)
    with monkeypatch.context() as patch:
        patch.setattr('huggingface_hub.HfApi.create_commit', lambda *_, **__: (_ for _ in ()).throw(OSError('the line is cut')))
        said = one_line(train, run, data=three_stories, **how)
    assert said == (f'me/my-run: could not be pushed (the line is cut); {run}/pipeline is trained, push it again: '
                    f'arldm-train {run} --push-to-hub --hub-model-id me/my-run')
    assert same(StoryPipeline.from_pretrained(run), StoryPipeline.from_pretrained(run/'pipeline')) and not hub.commits
    before = read_folder(run)
    assert train(run, push_to_hub=True, dry_run=True) == run/'pipeline' and not hub.commits
    train(run, push_to_hub=True, hub_model_id='me/my-run')
    assert hub.commits == ['Upload StoryPipeline', 'Upload LoRA'] and 'pushed: ' in capsys.readouterr().out and read_folder(run) == before
    pushed = hub.repos['me/my-run'].branches['main']
    assert b'| Training | 2 steps of 2 stories |' in pushed['README.md'] and 'manifest.json' not in pushed
    assert same(StoryPipeline.from_pretrained('me/my-run'), StoryPipeline.from_pretrained(run))
    # the LoRA on the hub, and what trained beside it
    base = StoryPipeline.from_model(make_model(resolve('tiny', resolution=16, corpus='toy'), StoryFile(three_stories), tmp_path))
    base.load_lora_weights('me/my-run')
    base.unload_lora_weights()
    base.load_lora_weights('me/my-run', subfolder='lora')
    trained = StoryPipeline.from_pretrained(run).history.state_dict()
    assert all(torch.equal(x, trained[name]) for name, x in base.history.state_dict().items())
    del pushed['lora/trained_weights.safetensors']
    base.unload_lora_weights()
    assert 'trained_weights.safetensors, which trained beside this LoRA, is missing' in one_line(
        base.load_lora_weights, 'me/my-run', subfolder='lora', force_download=True)

def test_login_is_checked_first(hub, three_stories, tmp_path, monkeypatch):
    "One line, and nothing is written."
    how = dict(data=three_stories, preset='tiny')
    assert one_line(train, tmp_path/'run', **how, hub_model_id='me/x') == '--hub-model-id needs --push-to-hub'
    assert one_line(train, tmp_path/'run', **how, push_to_hub=True) == (
        f'--push-to-hub: no login to {hub.url} on this machine; log in with hf auth login')
    for token, said in ('hf_bad', f'--push-to-hub: no login to {hub.url} (Invalid user token.'), ('hf_read', (
            '--push-to-hub: the token of me may only read; log in with one that may write: hf auth login')):
        monkeypatch.setenv('HF_TOKEN', token)
        assert one_line(train, tmp_path/'run', **how, push_to_hub=True).startswith(said)
    monkeypatch.setenv('HF_TOKEN', GOOD)
    said = one_line(train, tmp_path/'run', **how, push_to_hub=True, hub_model_id='me/a/b')
    assert said.startswith('--push-to-hub: me/a/b cannot be a name on the hub (') and said.endswith('--hub-model-id owner/name')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert one_line(train, tmp_path/'run', **how, push_to_hub=True) == (
        '--push-to-hub: HF_HUB_OFFLINE is set; unset it, or push later')
    assert not (tmp_path/'run').exists() and not hub.repos.keys() - {'someone/stories'}
