"""A rollout of slime's own rollout manager with the judge as its reward; run with slime on the path.

    python slime_job.py RESULT.json FLAG...        # flags are slime's, such as --group-rm

SGLang's server is a stand-in that answers "red star 1", "red star 2" and so on; what GPUs and logs need is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import threading
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from aiohttp import web
from PIL import Image
from transformers import AutoTokenizer

from flexjudge_reward.nano import path

BASE = str(path("base"))
LEFT_OUT = {"sglang", "sglang_router", "wandb", "blobfile", "xxhash", "zstandard", "memray", "blake3"}


class Nothing(MetaPathFinder, Loader):
    """Packages that are imported, and used by nothing that runs here."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """An empty package for those that are left out."""
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in LEFT_OUT else None

    def exec_module(self, module: ModuleType) -> None:
        """Whatever is taken from it is a mock."""
        vars(module)["__getattr__"] = lambda name: MagicMock(name=name)


def serve() -> str:
    """The address of a server that speaks as SGLang's."""
    tokenizer, numbers, loop = AutoTokenizer.from_pretrained(BASE), itertools.count(1), asyncio.new_event_loop()

    async def generate(request: web.Request) -> web.Response:
        text = f"red star {next(numbers)}"
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        said = {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[0.0, one, None] for one in ids]}
        return web.json_response({"text": text + "<|im_end|>", "meta_info": said})

    async def workers(request: web.Request) -> web.Response:
        return web.json_response({"workers": []})

    async def run() -> int:
        app = web.Application()
        app.add_routes([web.post("/generate", generate), web.get("/workers", workers)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    threading.Thread(target=loop.run_forever, daemon=True).start()
    return str(asyncio.run_coroutine_threadsafe(run(), loop).result())


def rows(folder: Path) -> Path:
    """A data set as slime reads it: three prompts with an image each."""
    lines = []
    for number in range(3):
        Image.new("RGB", (56, 56), (80 * number, 0, 0)).save(folder / f"{number}.png")
        asked = [{"role": "user", "content": "<image>What is top left?"}]
        lines.append({"text": asked, "label": "red star", "images": [str(folder / f"{number}.png")]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "rows.jsonl"


def main() -> None:
    """Rolls out; writes the samples and what slime trains on."""
    result, *flags = sys.argv[1:]
    sys.meta_path.insert(0, Nothing())
    from slime.ray.rollout import RolloutManager
    from slime.rollout.data_source import RolloutDataSource
    from slime.utils.arguments import get_slime_extra_args_provider
    from slime.utils.http_utils import init_http_client
    from slime.utils.misc import load_function

    parser = get_slime_extra_args_provider()(argparse.ArgumentParser(conflict_handler="resolve"))
    given = f"""--hf-checkpoint {BASE} --prompt-data {rows(Path.cwd())} --input-key text --label-key label
        --apply-chat-template --rollout-batch-size 3 --n-samples-per-prompt 4 --advantage-estimator grpo 
        --rollout-max-response-len 16 --rollout-num-gpus 1 --rollout-num-gpus-per-engine 1"""
    args = parser.parse_args([*given.split(), "--multimodal-keys", '{"image": "images"}', *flags])
    vars(args).update(
        sglang_router_ip="127.0.0.1", sglang_router_port=serve(), sglang_server_concurrency=64, sglang_dp_size=1,
        over_sampling_batch_size=3, eval_datasets=[], load_debug_rollout_data=None,  # as its own checks set them
    )  # fmt: skip
    init_http_client(args)
    kind = RolloutManager.__ray_metadata__.modified_class
    manager = kind.__new__(kind)
    manager.args, manager.data_source = args, RolloutDataSource(args)
    manager.generate_rollout = load_function(args.rollout_function_path)
    manager.custom_reward_post_process_func = manager.custom_convert_samples_to_train_data_func = None
    samples, _ = manager._get_rollout_data(0)
    trained = manager._convert_samples_to_train_data(samples)
    names = ("rewards", "raw_reward", "loss_masks")
    found = {"texts": [one.response for one in samples], "prompts": [str(one.prompt) for one in samples]}
    Path(result).write_text(json.dumps({**found, **{name: trained[name] for name in names}}))


if __name__ == "__main__":
    main()
