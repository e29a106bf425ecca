"""The operators of the ONNX domain `bnn_deploy`: their table, their bodies in standard ONNX, their bit format."""
