"""Everything that turns a user's module, checkpoint or ONNX file into a float ONNX graph."""
