"""Lets a CUDA build of torchvision import beside a CPU build of torch. For development machines only.

The package index has torchvision for Linux as a CUDA build alone. Beside CPU torch its compiled part does not load, and
`import torchvision` then fails because two operators it describes were never defined. This defines them, without a
body: nothing here detects boxes. Python runs this file at its start when the folder is on PYTHONPATH, which child
processes (vLLM's engine) inherit; the work waits in an import hook, so that Python's own start stays cheap.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_OPERATORS = ("nms", "qnms")
_keep = []  # a torch.library.Library takes its operators away when it is collected


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision.extension":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            if not module._has_ops():
                _define()

        spec.loader.exec_module = exec_module
        return spec


def _define():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())
