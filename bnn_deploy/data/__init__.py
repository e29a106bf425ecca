"""Samples as people have them, read in parts: arrays, MNIST's IDX files, folders of images."""
