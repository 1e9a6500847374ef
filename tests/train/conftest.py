"What the tests of training share."
import pytest

from arldm.cli import training_run

@pytest.fixture(scope='module', autouse=True)
def rough_strips():
    "Validation stories are drawn in one step: no test here looks at what they show."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, 'STRIP_STEPS', 1)
        yield
