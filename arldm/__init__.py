"""Visual stories drawn frame by frame; the source of every module is a notebook in nbs/."""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_HOME = {  # public name -> its module, imported when the name is first used
    'ARLDM': 'model.arldm', 'Settings': 'settings', 'Story': 'data.story', 'StoryDataset': 'data.dataset', 'StoryError': 'core',
    'StoryFile': 'data.story', 'StoryOutput': 'draw.story_output', 'StoryPipeline': 'draw.pipeline', 'asset': 'core', 'draw_split': 'draw.test_set',
    'evaluate': 'score.evaluate', 'resolve': 'settings', 'story_panel': 'draw.panel', 'train_steps': 'train.loop', 'write_report': 'report.report', 'write_stories': 'data.story'}

__all__ = ['__version__', *_HOME]


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(_import_module(f'.{_HOME[name]}', __name__), name)
    globals()[name] = value
    return value


def __dir__(): return sorted(__all__)
