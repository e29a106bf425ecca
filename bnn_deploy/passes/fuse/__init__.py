"""Passes that make BatchNorm, ReLU, scales and shortcuts a part of binarisations and binary layers."""
