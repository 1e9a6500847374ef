"""Export a pipeline for the page that draws: its parts as ONNX, its tokenizers, and model.json.

    python docs/export_onnx.py data/toy/arldm FOLDER

Every size, setting and name is read from the pipeline. The UNet takes contexts of any number of
tokens, the history embeddings any number of slots and cards; all else has the sizes that the
pipeline was trained with, and one story.
"""
import argparse
import base64
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from arldm.core import StoryError
from arldm.files.atomic import load_json, whole_folder
from arldm.model.arldm import ARLDM
from arldm.model.encoders import MemoryEncoder
from arldm.toy.captions import STORY_FRAMES
from arldm.toy.corpus import toy_story

LARGEST = 20_000_000     # bytes that a reader of the page has to load
EXAMPLES = 3, 8, 21, 34  # numbers of the toy stories whose captions the page offers
# what scheduler.js does not know, with the value that leaves it out
UNUSED = dict(trained_betas=None, thresholding=False, use_karras_sigmas=False, use_lu_lambdas=False,
              use_exponential_sigmas=False, use_beta_sigmas=False, use_flow_sigmas=False,
              use_dynamic_shifting=False, variance_type=None)
SCHEDULE = ('num_train_timesteps', 'beta_start', 'beta_end', 'beta_schedule', 'prediction_type',
            'rescale_betas_zero_snr', 'timestep_spacing', 'steps_offset')
KNOWN = dict(prediction_type=('epsilon', 'v_prediction'), beta_schedule=('linear', 'scaled_linear'),
             timestep_spacing=('linspace', 'leading', 'trailing'))
SOLVER = dict(algorithm_type='dpmsolver++', solver_order=2, solver_type='midpoint',
              final_sigmas_type='zero', lower_order_final=True)


class Part(nn.Module):
    "A function of a module as a module, which is what can be exported."
    def __init__(self, module, function):
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *inputs): return self.function(self.module, *inputs)


def encode_caption(encoder, ids, real): # (1, S), bool (1, S) -> (1, S, D)
    return encoder(ids, attention_mask=real.long()).last_hidden_state

# (1, S, D), (1, N, S, D'), (1, C, S, D') -> (1, tokens, D)
def join(history, caption, slots, cards):
    return history(caption[:, None], slots[:, None], cards[:, None])

def predict(unet, latents, t, context): # (1, C, h, w), (), (1, tokens, D) -> (1, C, h, w)
    return unet(latents, t, encoder_hidden_states=context).sample

def decode(vae, latents): # (1, C, h, w) -> (1, 3, H, W)
    return vae.decode(latents/vae.config.scaling_factor).sample


def parts(model):
    "Return name -> (`Part`, example inputs, {name of an input: {axis of any length: its name}})."
    S, P = model.vocab.length, model.memory_side
    D, W = model.history.config.width, model.slot_width
    z = torch.randn(1, model.unet.config.in_channels, *latent_size(model))
    ids = torch.zeros(1, S, dtype=torch.long)
    real = torch.ones(1, S, dtype=torch.bool)
    def tensor(*shape): return torch.randn(shape)
    slots = dict(slots={1: 'n_slots'}, cards={1: 'n_cards'})
    return dict(
        caption_encoder=(Part(model.text_encoder, encode_caption), dict(ids=ids, real=real), {}),
        memory_encoder=(Part(model.memory_encoder, MemoryEncoder.forward),
                        dict(pictures=tensor(1, 3, P, P), ids=ids, real=real), {}),
        history=(Part(model.history, join), dict(caption=tensor(1, S, D), slots=tensor(1, 3, S, W),
                                                 cards=tensor(1, 2, S, W)), slots),
        unet=(Part(model.unet, predict),
              dict(latents=z, t=torch.tensor(500), context=tensor(1, 2*S, D)),
              dict(context={1: 'tokens'})),
        decoder=(Part(model.vae, decode), dict(latents=z), {}))


def latent_size(model):
    "Return height and width of a frame's latents."
    size = model.unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def export_part(part, inputs, axes, path):
    """Write a part as ONNX.

    By tracing: `dynamo=True` takes 25 times as long, and gives the same numbers in more bytes.
    """
    with warnings.catch_warnings():
        # that tracing will be replaced, and that sizes become constants, as they should
        for kind in DeprecationWarning, FutureWarning, UserWarning, torch.jit.TracerWarning:
            warnings.simplefilter('ignore', kind)
        torch.onnx.export(part.eval(), tuple(inputs.values()), path, dynamo=False,
                          input_names=list(inputs), output_names=['out'], dynamic_axes=axes)


def check(model, scheduler):
    "Raise `StoryError` for what the page cannot do."
    kind = scheduler.get('_class_name')
    if kind != 'DPMSolverMultistepScheduler':
        raise StoryError(f'the page knows DPMSolverMultistepScheduler, the pipeline has {kind}')
    for key, value in {**UNUSED, **SOLVER}.items():
        if scheduler.get(key, value) != value:
            raise StoryError(f'the page knows {key}={value!r} only, the scheduler has '
                             f'{scheduler[key]!r}')
    for key, values in KNOWN.items():
        if scheduler.get(key, values[0]) not in values:
            raise StoryError(f'the page knows {key} {" and ".join(values)}, the scheduler has '
                             f'{scheduler[key]!r}')
    if type(model.memory_encoder) is not MemoryEncoder:
        raise StoryError(f'the page knows MemoryEncoder, the pipeline has '
                         f'{type(model.memory_encoder).__name__}')
    if model.vae.config.latents_mean is not None or model.vae.config.shift_factor:
        raise StoryError('the page knows no latents with a mean or shift')
    expected = dict(caption_tokenizer='BPE', memory_tokenizer='WordPiece')
    for name, kind in expected.items():
        found = tokenizer_spec(model, name)['model']['type']
        if found != kind: raise StoryError(f'the {name} should be {kind}, it is {found}')


def tokenizer_spec(model, name):
    "Return tokenizer.json of a tokenizer of the vocabulary."
    return json.loads(getattr(model.vocab, name).backend_tokenizer.to_str())


def token_ids(tokenizer):
    "Return the ids of the tokens at the ends of a caption and of padding."
    start, end = tokenizer('')['input_ids']
    return dict(start=start, end=end, pad=tokenizer.pad_token_id)


def examples(n_frames, cast):
    "Return stories to begin with: captions, and cast cards as data URLs by name."
    found = []
    for number in EXAMPLES:
        story = toy_story(number, min(n_frames, STORY_FRAMES), cards=cast)
        cards = {}
        for name, png in story.cast.items():
            cards[name] = 'data:image/png;base64,' + base64.b64encode(png).decode()
        found.append(dict(captions=list(story.captions), cast=cards))
    return found


def write_parts(model, out):
    "Write every part as ONNX; return name -> file and size in bytes."
    files = {}
    with torch.no_grad():
        for name, (part, inputs, axes) in parts(model).items():
            path = out/f'{name}.onnx'
            export_part(part, inputs, axes, path)
            files[name] = dict(file=path.name, bytes=path.stat().st_size)
    total = sum(file['bytes'] for file in files.values())
    if total > LARGEST:
        raise StoryError(f'{total:,} bytes as ONNX, a page may load {LARGEST:,}')
    return files


def write_manifest(model, scheduler, out, **more):
    "Write the tokenizers, and model.json with sizes, settings and what else is given."
    for name in 'caption_tokenizer', 'memory_tokenizer':
        spec = json.dumps(tokenizer_spec(model, name), ensure_ascii=False)
        (out/f'{name}.json').write_text(spec, encoding='utf-8')
    config = model.history.config
    manifest = dict(
        length=model.vocab.length, width=config.width, slot_width=model.slot_width,
        n_slots=config.n_slots, cast=config.cast, side=model.resolution,
        memory_side=model.memory_side,
        latents=[model.unet.config.in_channels, *latent_size(model)],
        mean=list(OPENAI_CLIP_MEAN), std=list(OPENAI_CLIP_STD),
        scheduler={key: scheduler[key] for key in SCHEDULE if key in scheduler},
        caption_tokenizer=token_ids(model.vocab.caption_tokenizer),
        memory_tokenizer=token_ids(model.vocab.memory_tokenizer),
        examples=examples(config.n_slots, config.cast), **more)
    (out/'model.json').write_text(json.dumps(manifest, indent=1), encoding='utf-8')
    return manifest


def export(folder, out, **more):
    "Write what the page loads of a pipeline into a folder that exists; return model.json."
    model = ARLDM.load(folder)
    scheduler = load_json(Path(folder)/'scheduler/scheduler_config.json')
    check(model, scheduler)
    return write_manifest(model, scheduler, out, parts=write_parts(model, out), **more)


def main(words=None):
    "The command; `words`: its arguments, by default those it was called with."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('pipeline', type=Path, help='pipeline folder')
    parser.add_argument('out', type=Path, help='folder for the files, which does not exist yet')
    args = parser.parse_args(words)
    try:
        with whole_folder(args.out) as tmp: made = export(args.pipeline, tmp)
    except StoryError as e: sys.exit(str(e))
    total = sum(part['bytes'] for part in made['parts'].values())
    print(f'{args.out}: {len(made["parts"])} parts, {total:,} bytes')


if __name__ == '__main__': main()
