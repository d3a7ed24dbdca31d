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
    """Lets `import torchvision` work in this process. Cheap; may be called often. `warn` logs a broken one, once."""
    if "torchvision.extension" not in sys.modules and not any(type(f).__name__ == "_Finder" for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(warn))  # type: ignore[arg-type]


def _declare(warn: bool) -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    if warn:
        import logging

        logging.getLogger("flexjudge_reward").warning(
            "torchvision does not match torch %s: its compiled operators do not load. This process continues without"
            " them. Install a matching build, or mend this environment for your own scripts, too:"
            " python -m flexjudge_reward.engines.torchvision_mend",
            torch.__version__,
        )


def main() -> None:
    """Mends the environment of this Python, or takes that back."""
    import sysconfig
    from pathlib import Path

    if sys.argv[1:] not in ([], ["--remove"]):
        sys.exit("usage: python -m flexjudge_reward.engines.torchvision_mend [--remove]")
    folder = Path(sysconfig.get_path("purelib"))
    module, hook = folder / f"{NAME}.py", folder / f"{NAME}.pth"
    if sys.argv[1:]:
        module.unlink(missing_ok=True)
        hook.unlink(missing_ok=True)
        print("torchvision: this environment is as it was installed")
    elif not (problem := _import_problem()):
        print("torchvision: imports here, nothing to mend")
    elif "ModuleNotFoundError: No module named 'torchvision'" in problem:
        print("torchvision: not installed, nothing to mend")
    else:
        module.write_text(Path(__file__).read_text("utf-8"), "utf-8")
        hook.write_text(f"import {NAME}; {NAME}.mend(warn=False)\n")
        if problem := _import_problem():
            module.unlink()
            hook.unlink()
            sys.exit(f"torchvision: broken in a way that this cannot mend:\n{problem[-1000:]}")
        print(f"torchvision: its operators do not load beside this torch; {hook} declares them")


def _import_problem() -> str:
    """What a new Python says that cannot import torchvision; empty if it can."""
    import subprocess

    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return f"{probe.stderr}\nexit status {probe.returncode}" if probe.returncode else ""


if __name__ == "__main__":
    main()
