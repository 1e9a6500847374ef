"Looks, scenes and stories of the toy world that several tests look at."
import random
from functools import cache

from arldm.toy.captions import invent
from arldm.toy.scene import Figure, Look, Scene

STAR = Look('red', 'star', 'big', 'hat')
DISC = Look('blue', 'circle', 'small', 'nothing')

def scene(*figures, place='forest', time='night'): return Scene(place, time, figures)

def both(a='stand', b='stand'): return scene(Figure(STAR, 'left', a), Figure(DISC, 'right', b))

@cache
def short_stories():
    "400 stories of 5 frames: lists of beats."
    return [invent(random.Random(i)) for i in range(400)]

@cache
def long_stories():
    "400 stories of 10 frames: lists of beats."
    return [invent(random.Random(f'long {i}'), 10) for i in range(400)]
