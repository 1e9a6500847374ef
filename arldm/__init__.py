"""Visual stories drawn frame by frame; the source of every module is a notebook in nbs/."""

__version__ = "0.1.0"
