"What the tests of training share."
import pytest

from arldm.draw import validation_strips

@pytest.fixture(scope='module', autouse=True)
def rough_strips():
    "Validation stories are drawn in one step: no test here looks at what they show."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation_strips, 'STRIP_STEPS', 1)
        yield
