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
def old_stories():
    "400 stories in which nothing is untold: lists of beats."
    return [invent(random.Random(i)) for i in range(400)]

@cache
def untold_stories():
    "300 stories of 10 frames with patterns, scarves and landmarks: lists of beats."
    return [invent(random.Random(f'untold {i}'), 10, untold=True) for i in range(300)]
