"""Programs that classify pictures with a model: of a camera, of a folder, and of those who ask over HTTP.

Each is started by `python -m bnn_deploy.apps.NAME MODEL.onnx ...`, and `bnn-deploy bundle --app NAME` makes a service
of it. They need what a board has, and the extra `camera` or `images`.
"""
