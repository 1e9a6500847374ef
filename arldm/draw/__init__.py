"""Frames out: sampling, the pipeline, whole test sets."""
