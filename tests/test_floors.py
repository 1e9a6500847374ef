"Nothing is used that the floors of torch, transformers, diffusers and accelerate do not have."
from floors import LIST, first_line, floors, there, used, used_by_package


def test_package_keeps_to_the_floors():
    "The names that were found in the floors are the names that the package uses."
    first, *listed = LIST.read_text(encoding='utf-8').splitlines()
    pins = ' '.join(f'{name}=={oldest}' for name, oldest in floors().items())
    renew = f'in a new environment `pip install {pins} tensorboard`, then `python tests/floors.py`'
    assert first == first_line(), f'tests/floors.txt was written with other floors: {renew}'
    names = used_by_package()
    new = [name for name in names if name not in listed]
    gone = [name for name in listed if name not in names]
    assert not new, f'perhaps newer than the floors: {", ".join(new)}: {renew}'
    assert not gone, f'no longer used, delete from tests/floors.txt: {", ".join(gone)}'
    assert listed == names, 'tests/floors.txt is not sorted, or has a line twice'

SAMPLE = '''
import numpy as np, torch
import torch.nn.functional as F
from torch.nn import Linear as L
from .loss import loss
def f(x):
    from diffusers import AutoencoderKL
    torch.compiler.reset()
    return F.something_new(x.sum(), size=np.ones(2)).cpu(**{}), L(2, 2, bias=False), loss(torch=1)
'''

def test_floors_see():
    "Imports under other names, chains and keywords are seen; what is missing is named."
    new = 'torch.nn.functional.something_new'
    known = {'torch', 'torch.compiler', 'torch.compiler.reset', 'torch.nn.functional',
             'torch.nn.Linear', 'torch.nn.Linear(bias)', 'diffusers.AutoencoderKL'}
    assert used(SAMPLE) == {*known, new, f'{new}(size)'}
    assert {name for name in used(SAMPLE) if not there(name)} == {new, f'{new}(size)'}
    assert there('torch.utils.data.DataLoader(pin_memory)')
    assert not there('torch.nn.Linear(colour)')
