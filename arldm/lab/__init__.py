"""Experiments that make the claims of this book."""
