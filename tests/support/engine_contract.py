"""The contract of every engine as test classes: a subclass gives the fixture `engine`.

`EngineContract` holds for all, `ModelContract` also for those that run the embedded judge.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import threading
from typing import Any

from flexjudge_recipes.nano import shapes

from flexjudge_reward import (
    Engine,
    Example,
    Generation,
    Media,
    Message,
    Pairwise,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    Untrusted,
)

GREEDY, SHORT = Sampling(max_tokens=160), Sampling(max_tokens=12)
TOO_LONG = "What is top-left? " * 1500


def item(name: object, *parts: Untrusted | Media, sampling: Sampling = GREEDY) -> Request:
    """A request that a test tells from others by its name."""
    user = Message("user", (Untrusted(f"item {name} "), *parts))
    return Request(Prompt((Message("system", ("Judge.",)), user)), sampling)


def judgement(seed: int, medium: str = "words", candidates: int = 1, sampling: Sampling = GREEDY) -> Request:
    """A request of the embedded judge's world."""
    rng = random.Random(seed)
    question = shapes.question(rng, shapes.scene(rng, held_out=True))
    shown: Any = {
        "words": question.scene.in_words(rng) + "\n",
        "image": Media.image(shapes.draw(question.scene, rng)),
        "video": Media.video(shapes.clip(question.scene, rng)),
    }[medium]
    example = Example((shown, question.text), shapes.candidates(rng, question, candidates))
    format = (Pointwise if candidates == 1 else Pairwise)(prompt_set="nano")
    return Request(format.render(example)[0], sampling)


def texts(generations: list[Generation]) -> list[str]:
    assert [generation.failure for generation in generations] == [None] * len(generations)
    return [generation.text for generation in generations]


def closes_and_opens(engine: Engine) -> None:
    """It may be closed at any time, and twice; its next call opens it again. Closes it."""
    engine.close()
    before = texts(engine.generate([item(1)]))
    engine.close()
    engine.close()
    assert texts(engine.generate([item(1)])) == before
    engine.close()


class EngineContract:
    """What every engine promises."""

    def test_one_reply_per_request_in_order(self, engine: Engine) -> None:
        requests = [item(n, Untrusted("x" * (n * 37 % 50)), sampling=SHORT) for n in range(9)]
        together = texts(engine.generate(requests))
        assert together == [texts(engine.generate([request]))[0] for request in requests]
        assert engine.generate([]) == []

    def test_each_request_has_its_own_sampling(self, engine: Engine) -> None:
        requests = [item("a", sampling=SHORT), item("b"), item("c", sampling=SHORT), item("d")]
        assert texts(engine.generate(requests)) == [texts(engine.generate([request]))[0] for request in requests]

    def test_bad_media_fails_alone(self, engine: Engine) -> None:
        image = Media.image(shapes.draw(shapes.scene(random.Random(1)), random.Random(1)))
        generations = engine.generate([item(0, image), item(1, Media.image(b"broken")), item(2)])
        assert [g.failure.kind if g.failure else None for g in generations] == [None, "media", None]
        assert generations[2] == engine.generate([item(2)])[0]

    def test_identity_is_json_and_stable(self, engine: Engine) -> None:
        identity = engine.identity()
        assert json.loads(json.dumps(identity)) == identity
        assert pickle.loads(pickle.dumps(engine)).identity() == identity == engine.identity()
        assert identity["engine"] in ("scripted", "server", "transformers", "vllm")

    def test_threads_get_their_own_replies(self, engine: Engine) -> None:
        batches = [[item(f"{thread}x{n}", sampling=SHORT) for n in range(6)] for thread in range(4)]
        expected = [texts(engine.generate(batch)) for batch in batches]
        replies: dict[int, list[str]] = {}

        def ask(thread: int) -> None:
            replies[thread] = texts(engine.generate(batches[thread]))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [replies[n] for n in range(4)] == expected

    def test_works_inside_a_running_event_loop(self, engine: Engine) -> None:
        async def inside() -> list[str]:
            return texts(engine.generate([item(1)]))

        assert asyncio.run(inside()) == texts(engine.generate([item(1)]))


class ModelContract(EngineContract):
    """What an engine with the embedded judge promises."""

    def test_the_embedded_judge_sees(self, engine: Engine) -> None:
        """Each medium gives a well-formed reply, and another image another reply."""
        requests = [judgement(seed, medium) for seed in (1, 2, 3) for medium in ("words", "image", "video")]
        replies = texts(engine.generate(requests))
        assert all(reply.startswith("<think>") and reply.endswith("</answer>") for reply in replies)
        assert len(set(replies[1::3])) == 3
        assert engine.supports("image")

    def test_a_prompt_that_is_too_long_fails_alone(self, engine: Engine) -> None:
        requests = [judgement(1), item(1, Untrusted(TOO_LONG)), judgement(2)]
        generations = engine.generate(requests)
        assert generations[1].failure is not None and generations[1].failure.kind == "refused"
        assert generations[::2] == engine.generate(requests[::2])

    def test_how_a_reply_ends(self, engine: Engine) -> None:
        samplings = (GREEDY, Sampling(max_tokens=5), Sampling(max_tokens=160, stop=("</think>",)))
        whole, cut, stopped = engine.generate([judgement(4, sampling=sampling) for sampling in samplings])
        assert (whole.finish_reason, cut.finish_reason, stopped.finish_reason) == ("stop", "length", "stop")
        assert whole.text.startswith(cut.text) and cut.completion_tokens == 5
        assert whole.text.startswith(stopped.text) and "</think>" not in stopped.text
        assert whole.prompt_tokens == cut.prompt_tokens > 0 < whole.completion_tokens

    def test_a_seed_fixes_a_reply_whatever_its_batch(self, engine: Engine) -> None:
        draws = [item("a", sampling=Sampling(1.5, 0.95, 40, seed=seed)) for seed in range(7, 15)]
        replies = texts(engine.generate(draws))
        assert len(set(replies)) > 4
        assert texts(engine.generate(draws[3:5])) == replies[3:5]

    def test_logprobs_come_with_each_token(self, engine: Engine) -> None:
        (generation,) = engine.generate([judgement(5, sampling=Sampling(max_tokens=160, logprobs=2))])
        assert generation.logprobs is not None and len(generation.logprobs) == generation.completion_tokens
        assert all(len(token.top) == 2 and max(token.top.values()) == token.logprob for token in generation.logprobs)
        assert "".join(token.token for token in generation.logprobs).startswith(generation.text)
