"""Darknet networks: a .cfg file and its .weights become a float ONNX model."""
