"""Golden results: the bits and outputs of one machine, which another machine must reproduce.

A golden file holds inputs, the bits that every layer computed, and the outputs. It is made where onnx is installed
(`make_golden`) and checked with onnxruntime and numpy alone (`check_golden`), which a board has. Two questions:

1. Layers. Fed with the golden bits of the layer before, does each layer compute its golden bits? A layer that compares
   integers has no tolerance. Nor has a binary layer that makes floats, which are integers times a scale: the file
   holds their checksums. Where a layer compares other floats with a threshold, another machine may round differently:
   the bits whose float lies within the flip margin of the threshold (`near`) may flip, but only few of them.
2. Outputs. Running free, are all bits of a sample golden, and its outputs equal but for rounding? If not, the first
   layer with a differing bit must compare floats and all its flips must be near: they explain all later differences.

The probe shows a model's layers without the onnx package. It is a serialised ModelProto in the golden file with nothing
but additional nodes, inputs and outputs. Concatenated protocol buffers merge, so the model's bytes followed by the
probe's bytes are the model, with its weights, plus the probe's nodes, inputs and outputs.
"""
