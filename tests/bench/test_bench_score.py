"The benchmark of scoring: the network's turns are fair to the stream, every picture and second is counted, lines are right."
import io
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from arldm.bench import score as throughput
from arldm.score.feature_networks import Store
from arldm.bench.measure import format_line
from arldm.files.pictures import decode
from arldm.bench.bench import bench
from arldm.bench.score import BENCH_SIDE, Turns, bench_streaming, stream_in_turns, write_pictures


class Slow(nn.Module):
    "Takes `nap` seconds a batch; `calls` are the moments when it began and ended."
    side, num_features = 16, 4
    def __init__(self, nap=.03): super().__init__(); self.nap, self.calls = nap, []
    def forward(self, x):
        self.calls.append((start := time.perf_counter(), start + self.nap))
        time.sleep(self.nap)
        return x.float().mean((2, 3))[:, [0, 1, 2, 0]]

class File:
    "A picture of one colour that notes when it was read."
    def __init__(self, i, nap=0.):
        self.read, self.nap = [], nap
        Image.new('RGB', (BENCH_SIDE, BENCH_SIDE), (i, 0, 0)).save(out := io.BytesIO(), 'PNG')
        self.data = out.getvalue()
    def read_bytes(self):
        self.read.append(time.perf_counter())
        time.sleep(self.nap)
        return self.data

def ready(n=4): return torch.zeros(n, 3, 16, 16, dtype=torch.uint8)


# what is scored

def test_pictures(tmp_path):
    "JPEG and PNG in turn, of one size; all bytes differ, the pixels repeat."
    files = write_pictures(tmp_path/'p', 12, 4)
    data = [f.read_bytes() for f in files]
    assert len({*data}) == 12 and {decode(d).size for d in data} == {(BENCH_SIDE, BENCH_SIDE)}
    assert [Image.open(io.BytesIO(d)).format for d in data] == ['JPEG', 'PNG']*6
    assert [decode(d).tobytes() for d in data[:4]]*3 == [decode(d).tobytes() for d in data]


# turns

@pytest.fixture
def compared():
    "A stream of 22 pictures in batches of 4, with a turn after every two."
    net, files = Slow(), [File(i) for i in range(22)]
    turns, start = Turns(net, ready(), 2), time.perf_counter()
    rows = stream_in_turns(turns, files, Store())
    return turns, files, rows, time.perf_counter() - start

def test_every_picture_and_second_is_counted(compared):
    turns, files, rows, wall = compared
    assert [r['n_streamed'] for r in turns.rounds] == [8, 8, 6] and {r['n_alone'] for r in turns.rounds} == {4}
    counted = sum(r['stream_seconds'][0] + r['alone_seconds'][0] for r in turns.rounds)
    assert .5*wall < counted <= wall                                     # the first look, which warms up, is not
    assert (rows[:, 0] == np.arange(22)).all() and all(len(f.read) == 2 for f in files)   # for its key, and for the network

def test_making_keys_is_streaming(monkeypatch):
    "The clock runs before the network has seen anything."
    files, plain = [File(i) for i in range(8)], throughput.features_of
    def late(*args, **how):
        time.sleep(.3)
        return plain(*args, **how)
    monkeypatch.setattr(throughput, 'features_of', late)
    turns = Turns(Slow(0.), ready(), 1)
    stream_in_turns(turns, files, Store())
    assert turns.rounds[0]['stream_seconds'][0] > .3 > turns.rounds[1]['stream_seconds'][0]

def test_a_network_that_fails_ends_the_stream():
    "Threads that wait to read are let go."
    class Fails(Slow):
        def forward(self, x):
            if len(self.calls) == 3: raise RuntimeError('no more')
            return super().forward(x)
    with pytest.raises(RuntimeError, match='no more'): stream_in_turns(Turns(Fails(0.), ready(), 2), [File(i) for i in range(80)], Store())


# lines

def test_line(tmp_path, monkeypatch):
    "Sums for the rates; the middle round beside them, which a disturbance does not move."
    rounds = [dict(n_streamed=8, n_alone=4, stream_seconds=[s, 0], alone_seconds=[l, 0]) for s, l in ((10, 4), (10, 4), (60, 4))]
    monkeypatch.setattr(throughput, 'stream_in_turns', lambda turns, files, store: turns.rounds.extend(rounds))
    monkeypatch.setattr(throughput, 'untrained_inception', lambda side: throughput.Inception())
    line, middle = bench_streaming(tmp_path, 4, 75, 2, 1)
    assert (line['plain'], line['ours']) == (1, .3) and line['gain'] == pytest.approx(.3)
    assert middle['ours'] == pytest.approx(.8) and line['wanted'] == .9

def test_tiny_bench(tmp_path):
    result = bench('score', out=tmp_path/'score.json')
    assert [line['what'].split(',')[0] for line in result['lines']] == ['features of 48 pictures', 'the same', 'Fréchet distance']
    assert all(line['ours'] > 0 for line in result['lines']) and max(len(format_line(x)) for x in result['lines']) <= 110
    assert json.loads((tmp_path/'score.json').read_text())['what'] == 'score'
