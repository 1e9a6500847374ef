"What the tests of the laboratory share."
import pytest

from arldm.cli.convert import convert
from arldm.core import asset
from arldm.draw.pipeline import StoryPipeline


@pytest.fixture(scope='module')
def pipe():
    "The shipped AR-LDM."
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A story file of four toy albums for training, and a few for each other split."
    folder = tmp_path_factory.mktemp('toy')
    convert('toy', folder/'raw', str(folder/'toy.h5'), albums=4, quiet=True)
    return folder/'toy.h5'
