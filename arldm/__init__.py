"""Visual stories drawn frame by frame; the source of every module is a notebook in nbs/."""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_HOME = {  # public name -> its module, imported when the name is first used
    'ARLDM': 'model', 'Settings': 'settings', 'Story': 'story', 'StoryDataset': 'dataset', 'StoryError': 'core',
    'StoryFile': 'story', 'StoryOutput': 'draw', 'StoryPipeline': 'draw', 'asset': 'core', 'draw_split': 'gallery',
    'evaluate': 'score', 'resolve': 'settings', 'train_steps': 'train', 'write_report': 'report', 'write_stories': 'story'}

__all__ = ['__version__', *_HOME]


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(_import_module(f'.{_HOME[name]}', __name__), name)
    globals()[name] = value
    return value


def __dir__(): return sorted(__all__)
