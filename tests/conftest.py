"What pytest has to know of all tests."
import gc
import os
from pathlib import Path

import pytest

gc.disable()   # nothing that imports make is garbage, and looking for it takes a quarter of their time

def pytest_configure(config):
    about = 'what a CUDA GPU computes; as far as it can, it runs on the CPU too'
    config.addinivalue_line('markers', f'gpu: {about}')
    os.environ['TQDM_DISABLE'] = '1'   # no progress beside what a test reads; tqdm reads it when it is imported

def pytest_collection_modifyitems(items):
    "Begin with the site: at the end, its few tests would be divided, and every process would build it."
    items.sort(key=lambda item: item.path.name != 'test_docs.py')

def pytest_collection_finish():
    gc.freeze()   # what imports made stays anyhow; here and in processes that fork it is not looked through again
    gc.enable()

@pytest.fixture(scope='module')
def docs():
    "The scripts of docs/ can be imported."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parent.parent/'docs')
        yield
