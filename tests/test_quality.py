"Measuring goes on where it was stopped, gives the same rows again, and refuses rows that are not its own."
import pytest

from arldm import quality
from arldm.core import StoryError, asset
from arldm.draw import StoryPipeline
from arldm.quality import QualityEstimate, QualityBench, Way, estimates, measure, fresh_stories
from arldm.features import LatentFeatures

WAYS = [Way(steps=2), Way('ddim', 3, 1.), Way(steps=2, interval=(0, .5))]

@pytest.fixture(scope='module')
def pipe():
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope='module')
def exam(pipe, tmp_path_factory):
    return QualityBench(fresh_stories(tmp_path_factory.mktemp('stories'), 2)[:2], LatentFeatures(pipe.vae))

def without_seconds(rows): return [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]

@pytest.fixture(scope='module')
def rows(pipe, exam, tmp_path_factory): return list(measure(pipe, exam, WAYS, tmp_path_factory.mktemp('rows')))

def test_goes_on(pipe, exam, rows, tmp_path, monkeypatch):
    "Stopped while the second way is drawn: the first is kept and not drawn again, and the rows are those of a calm run."
    drawn, draw_way = [], quality.draw_way
    def broken(pipe, stories, way, *more):
        drawn.append(way)
        if len(drawn) == 2: raise KeyboardInterrupt
        return draw_way(pipe, stories, way, *more)
    monkeypatch.setattr(quality, 'draw_way', broken)
    with pytest.raises(KeyboardInterrupt): list(measure(pipe, exam, WAYS, tmp_path))
    assert [f.name for f in tmp_path.iterdir()] == [f'{WAYS[0]}.json']
    assert without_seconds(measure(pipe, exam, WAYS, tmp_path)) == without_seconds(rows)
    assert drawn == [WAYS[0], WAYS[1], *WAYS[1:]]

def test_batch_changes_nothing(pipe, exam, rows, tmp_path):
    "Story i starts from the same noise whatever its batch."
    one, = measure(pipe, exam, WAYS[:1], tmp_path, batch=1)
    assert one['wrong'] == rows[0]['wrong'] and one['distance'] == pytest.approx(rows[0]['distance'], rel=1e-2)

@pytest.mark.parametrize('text', ['', '{"way": {"steps"', '[]', '{}'])
def test_damaged(pipe, exam, tmp_path, text):
    (tmp_path/f'{WAYS[0]}.json').write_text(text)
    with pytest.raises(StoryError) as e: list(measure(pipe, exam, WAYS[:1], tmp_path))
    assert f'{WAYS[0]}.json' in str(e.value) and '\n' not in str(e.value)

def test_of_others(pipe, exam, tmp_path):
    "Rows of another noise or other stories are not mixed in."
    list(measure(pipe, exam, WAYS[:1], tmp_path))
    with pytest.raises(StoryError, match='other stories, weights or noise'):
        list(measure(pipe, exam, WAYS[:1], tmp_path, seed=1))
    less = QualityBench(exam.stories[:1], exam.net)
    with pytest.raises(StoryError, match='other stories, weights or noise'):
        list(measure(pipe, less, WAYS[:1], tmp_path))

def test_scheduler_stays(pipe, exam, rows): assert type(pipe.scheduler).__name__ == 'DPMSolverMultistepScheduler'

def test_lengths(exam):
    class Short:
        def __len__(self): return 3
    with pytest.raises(StoryError, match='one length'): QualityBench([exam.stories[0], Short()], exam.net)

def test_paired(exam, rows):
    "A way does not differ from itself, whatever the doubt of each."
    for e in estimates(exam, rows[0]).values(): assert (e - e).value == (e - e).doubt == 0
    assert f'{QualityEstimate(1.25, exam.again[0]*0):+.1f}' == '+1.2 ± 0.0'
