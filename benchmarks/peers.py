"""How fast this package judges beside the programs that users have or would write.

    python benchmarks/peers.py              against the `openai` package, about two minutes
    python benchmarks/peers.py flex_judge   against the loop of the released Flex-Judge, about five minutes
    python benchmarks/peers.py genrm        against a generative reward inside the trainer, about five minutes

A loopback server in a process of its own replies to each request after 20 ms. All sides ask about the same texts, in
turn, three rounds; the figure is the median of the ratios within a round. peers.sequential_ratio: one request after the
other. peers.async_openai_ratio: `AsyncOpenAI` with 64 tasks.

flex_judge: the embedded judge in one vLLM engine for both sides, 512 rows of texts and PNG files, half with an image;
caches are emptied before each turn. The other side is the loop of jongwooko/flex-judge, test/mllm_as_a_judge_vllm.py:
per row, open the image and apply the chat template; one `LLM.generate` for all; the scores by a regular expression.
Its resizing to 448 x 448 is left out, so that both sides show the same images. Ratio of rows per second.

genrm: `FlexJudgeReward` on vLLM with a cache that is empty before each turn; 256 rollouts in groups of 8, each an image
and one of five answers, so that half of a group's answers are equal, as those of a trained policy are. The other side
has the shape of ms-swift's GenRM plugin (examples/train/grpo/plugin/plugin.py): the same model on transformers in the
trainer's process, one `generate` for all rollouts, the score by a regular expression. Ratio of rewards per second.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
import sys
import tempfile
from statistics import median

import PIL.Image
from figures import record
from nano import cases
from overhead import QUESTION, Cost, alternating, answered, examples, forget, loopback, plain, spent

from flexjudge_reward import (
    CachedEngine,
    Example,
    FlexJudgeReward,
    Judge,
    Media,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ServerEngine,
    Untrusted,
    VLLMEngine,
)
from flexjudge_reward.media.image import encode
from flexjudge_reward.nano import path
from flexjudge_reward.prompts.quoting import flatten

REQUESTS, FEW, IN_FLIGHT, ROUNDS = 1024, 64, 64, 3
LOOP_ROUNDS, GROUPS, GROUP_SIZE = 5, 32, 8
ANSWERS = ("yes", "no", "2", "red star", "white triangle")
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


def openai() -> None:
    from openai import AsyncOpenAI, OpenAI

    texts = [f"Question {number}. {QUESTION * 5}" for number in range(REQUESTS)]
    requests = [Request(Prompt((Message("system", (QUESTION,)), Message("user", (Untrusted(one),))))) for one in texts]
    load, ratios = os.getloadavg()[0], {"sequential": [0.0], "async_openai": [0.0]}
    with loopback() as url, ServerEngine(url, concurrency=IN_FLIGHT) as engine:
        client = OpenAI(base_url=url, api_key="none")

        def body(text: str) -> dict[str, object]:
            messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}]
            return {"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 2048, "seed": 0}

        async def side_by_side() -> None:
            waiting = iter(texts)
            async with AsyncOpenAI(base_url=url, api_key="none") as many:

                async def work() -> None:
                    for text in waiting:
                        await many.chat.completions.create(**body(text))  # type: ignore[call-overload]

                await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

        def one_by_one() -> None:
            for text in texts[:FEW]:
                client.chat.completions.create(**body(text))  # type: ignore[call-overload]

        for number in range(ROUNDS + 1):
            ours: Cost = spent(lambda: answered(engine.generate(requests)))
            theirs = spent(lambda: asyncio.run(side_by_side())), spent(one_by_one)
            rates = [REQUESTS / ours.seconds, REQUESTS / theirs[0].seconds, FEW / theirs[1].seconds]
            print(
                f"round {number}: ours, AsyncOpenAI, OpenAI: {', '.join(f'{rate:.0f}/s' for rate in rates)}", flush=True
            )
            if number:
                ratios["async_openai"].append(rates[0] / rates[1])
                ratios["sequential"].append(rates[0] / rates[2])
    for name, target in (("sequential", ">= 20"), ("async_openai", ">= 9")):
        note = f"20 ms a reply, {IN_FLIGHT} in flight; load average {load:.1f} on {os.cpu_count()} cores"
        record(
            f"peers.{name}_ratio",
            median(ratios[name][1:]),
            unit="ratio of requests per second",
            target=target,
            note=note,
        )


def flex_judge() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import SamplingParams

    load, sampling = os.getloadavg()[0], Sampling(max_tokens=160)
    engine = VLLMEngine("nano", dtype="float32", enforce_eager=True)
    judge, params = Judge(Pointwise(prompt_set="nano"), engine, sampling), SamplingParams(temperature=0, max_tokens=160)
    judge(examples()[:2])  # starts the engine
    llm = engine._llm
    assert llm is not None
    tokenizer, rows = llm.get_tokenizer(), [stored(example) for example in examples()]
    turns = [chat(judge, example) for example in examples()]

    def ours() -> Cost:
        forget(llm)
        return spent(
            lambda: judge([Example([*map(Media.image, files), *texts], answers) for files, texts, answers in rows])
        )

    def theirs() -> Cost:
        forget(llm)
        return spent(loop)

    def asked(files: list[bytes], turn: list[dict[str, str]]) -> dict[str, object]:
        images = [PIL.Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return {"prompt": text, **({"multi_modal_data": {"image": images}} if images else {})}

    def loop() -> list[list[str]]:
        asked_all = [asked(files, turn) for (files, _, _), turn in zip(rows, turns, strict=True)]
        replies = llm.generate(asked_all, params, use_tqdm=False)
        return [re.findall(r"<answer>(\d+)</answer>", reply.outputs[0].text) for reply in replies]

    for (files, _, _), turn, example in zip(rows, turns, examples(), strict=True):
        assert asked(files, turn)["prompt"] == plain(engine, judge, example)["prompt"], "the prompts differ"
    costs = alternating(LOOP_ROUNDS, ours, theirs)
    engine.close()
    ratio = median(theirs.seconds / ours.seconds for ours, theirs in costs)
    note = f"{len(rows)} rows, half with an image, empty caches; load average {load:.1f} on {os.cpu_count()} cores"
    record("peers.flex_judge_ratio", ratio, unit="ratio of rows per second", target=">= 1.0", note=note)


def genrm() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    load, rng, sampling = os.getloadavg()[0], random.Random(0), Sampling(max_tokens=160)
    processor = AutoProcessor.from_pretrained(path("base"), padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(path("judge"), dtype="float32").eval()
    engine, form = VLLMEngine("nano", dtype="float32", enforce_eager=True), Pointwise(prompt_set="nano")
    questions = [case.example.question for case in cases("pointwise", "image", GROUPS, 1, seed=7)]
    rollouts = [(question, rng.choice(ANSWERS)) for question in questions for _ in range(GROUP_SIZE)]
    files = [encode(image.images()[0]) for (image, _), _ in rollouts]
    texts, answers = [text for (_, text), _ in rollouts], [answer for _, answer in rollouts]
    prompts = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in texts]
    turns = [chat(Judge(form, engine), Example(question, [answer])) for question, answer in rollouts]

    def ours() -> Cost:
        images = [PIL.Image.open(io.BytesIO(file)) for file in files]
        with tempfile.TemporaryDirectory() as folder:
            reward = FlexJudgeReward(Judge(form, CachedEngine(engine, f"{folder}/cache.sqlite"), sampling), probes=0)
            cost = spent(lambda: made.append(reward(prompts, answers, image=images)))
        if engine._llm is not None:
            forget(engine._llm)
        return cost

    def theirs() -> Cost:
        return spent(loop)

    def loop() -> None:
        images = [PIL.Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        asked = [processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
        inputs = processor(text=asked, images=[[image] for image in images], padding=True, return_tensors="pt")
        replies = model.generate(**inputs, max_new_tokens=160, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        scores = [re.search(r"<answer>(\d+)</answer>", text) for text in processor.batch_decode(replies)]
        made.append([None if score is None else float(score[1]) for score in scores])

    made: list[list[float | None]] = []
    costs = alternating(LOOP_ROUNDS, ours, theirs)
    engine.close()
    assert all(sum(one is not None for one in rewards) > 0.9 * len(rollouts) for rewards in made), "rollouts are lost"
    ratio = median(theirs.seconds / ours.seconds for ours, theirs in costs)
    different = len(set(zip(texts, files, answers, strict=True))) / len(rollouts)
    note = f"{len(rollouts)} rollouts, {different:.0%} different; load average {load:.1f} on {os.cpu_count()} cores"
    record("peers.genrm_ratio", ratio, unit="ratio of rewards per second", target=">= 5", note=note)


def stored(example: Example) -> tuple[list[bytes], list[str], list[str]]:
    """A row as a file has it: its images, the texts of its question, and its answers."""
    texts = [part for part in example.question if isinstance(part, str)]
    answers = ["".join(map(str, candidate)) for candidate in example.candidates]
    return [encode(media.images()[0]) for media in example.media], texts, answers


def chat(judge: Judge, example: Example) -> list[dict[str, str]]:
    """The turns of its prompt as texts, with the model's own mark in the place of each image."""
    (prompt,) = judge.format.render(example)
    shown = [
        (one.role, [PLACE if isinstance(part, Media) else part for part in flatten(one)]) for one in prompt.messages
    ]
    return [{"role": role, "content": "".join(parts)} for role, parts in shown]


if __name__ == "__main__":
    {"openai": openai, "flex_judge": flex_judge, "genrm": genrm}[sys.argv[1] if len(sys.argv) > 1 else "openai"]()
