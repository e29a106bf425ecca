"""Running and measuring models: needs onnxruntime and numpy only, and so runs on every board."""
