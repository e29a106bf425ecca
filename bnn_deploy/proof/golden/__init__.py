"""Golden results: what one machine computed, so that another can show that it computes the same.

A golden file holds inputs, the bits that every layer made of them, and the outputs. It is made where onnx is installed
(`make_golden`) and checked with onnxruntime and numpy alone (`check_golden`), which a board has. Two questions:

1. Layers. Each layer fed with the golden bits of the one before: does it make the golden ones of them? A layer that
   compares integers has no tolerance, nor have the floats of a binary layer, which are integers times a scale: of
   these, the checksums are golden. Where other floats are compared with a threshold, another machine may round
   otherwise, and so the bits whose float lies within the flip margin of the threshold (`near`) may flip; no others,
   and only few of them.
2. Running free, as in use: are all bits of a sample the golden ones, and its outputs but for rounding? Where not, the
   first layer with another bit must be one of floats and its flips all near: they explain whatever follows.

How to see the layers of a model without the onnx package: the golden file holds `probe`, a serialised ModelProto that
has nothing but further nodes, inputs and outputs. Protocol buffers merge what is concatenated, so that the model's
bytes followed by the probe's are the same model with those further nodes, inputs and outputs, and the same weights.
"""
