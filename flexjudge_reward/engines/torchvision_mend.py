"""What this package does about a torchvision whose compiled operators do not load. The one place that decides it.

A package index may hold torchvision for Linux as a CUDA build only. Beside a CPU build of torch its compiled part does
not load, and `import torchvision` fails ("operator torchvision::nms does not exist"). TRL, the video processors of
transformers and vLLM's vision models then fail with it, although they need none of these operators.

    mend()                                                       this process; engines and recipes call it
    python -m flexjudge_reward.engines.torchvision_mend          every process of this environment, also your own
                                                                 scripts and `vllm serve`; --remove takes it back

The missing operators are declared without a body: a program that calls one (object detection) still gets torch's error.
A missing torchvision stays missing and a working one stays as it is. This file imports nothing of the package, because
the second way copies it beside the other packages of the environment.
"""

from __future__ import annotations

import sys

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
NAME = "flexjudge_torchvision_mend"
_libraries: list[object] = []  # a torch.library.Library takes its operators away when it is collected


class _Finder:
    """Declares the operators right after torchvision has looked for its compiled part and not found it."""

    def __init__(self, warn: bool) -> None:
        self.warn = warn

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "torchvision.extension":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                load(module)
                if not module._has_ops():
                    _declare(self.warn)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def mend(warn: bool = True) -> None:
    """Lets `import torchvision` work in this process from now on. Cheap; may be called often.

    Args:
        warn: log one warning if torchvision turns out to be broken.
    """
    if "torchvision.extension" not in sys.modules and not any(type(f).__name__ == "_Finder" for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(warn))  # type: ignore[arg-type]


def _declare(warn: bool) -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator + SCHEMA)
    _libraries.append(library)
    if warn:
        import logging

        logging.getLogger("flexjudge_reward").warning(
            "torchvision does not match torch %s: its compiled operators do not load. This process goes on without"
            " them. Install a matching build, or mend this environment for your own scripts, too:"
            " python -m flexjudge_reward.engines.torchvision_mend",
            torch.__version__,
        )


def main() -> None:
    """Mends the environment of this Python, or takes that back."""
    import subprocess
    import sysconfig
    from pathlib import Path

    folder = Path(sysconfig.get_path("purelib"))
    module, hook = folder / f"{NAME}.py", folder / f"{NAME}.pth"
    if sys.argv[1:] == ["--remove"]:
        module.unlink(missing_ok=True)
        hook.unlink(missing_ok=True)
        print("torchvision: this environment is as it was installed")
        return
    if sys.argv[1:]:
        sys.exit("usage: python -m flexjudge_reward.engines.torchvision_mend [--remove]")
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    if probe.returncode == 0:
        print("torchvision: imports here, nothing to mend")
    elif "ModuleNotFoundError: No module named 'torchvision'" in probe.stderr:
        print("torchvision: not installed, nothing to mend")
    else:
        module.write_text(Path(__file__).read_text("utf-8"), "utf-8")
        hook.write_text(f"import {NAME}; {NAME}.mend(warn=False)\n")
        again = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
        if again.returncode:
            module.unlink()
            hook.unlink()
            sys.exit(f"torchvision: broken in a way that this cannot mend:\n{again.stderr[-1000:]}")
        print(f"torchvision: its operators do not load beside this torch; {hook} declares them")


if __name__ == "__main__":
    main()
