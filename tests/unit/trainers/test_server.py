"""The reward server and its client, over real connections."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    CostLimitReached,
    EngineError,
    Example,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Request,
    RewardSession,
    ScriptedEngine,
)
from flexjudge_reward.trainers import client
from support.images import noise, saved, uri
from support.judging import Served, scores, tags
from support.serving import Serving

Serve = Callable[..., Serving]
PNG = base64.b64encode(saved(noise())).decode()


class Engine(ScriptedEngine):
    """Scores candidates by their texts; waits, fails or raises where it is set to."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.blocked: threading.Event | None = None
        self.error: Exception | None = None
        self.fails = False

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        if self.blocked is not None:
            assert self.blocked.wait(10)
        if self.error is not None:
            raise self.error
        return super().complete(requests)

    def _answer(self, request: Request) -> str | Generation:
        shown = "".join(getattr(part, "text", "") for part in request.prompt.messages[1].parts)
        if self.fails or "broken" in shown:
            return Generation.failed("transport", "no route")
        return tags("off") if "unreadable" in shown else tags(4) if "2 + 2" in shown else scores(request)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def serve(engine: Engine) -> Iterator[Serve]:
    opened: list[Serving] = []

    def serve(format: Format | None = None, settings: dict[str, Any] | None = None, **options: Any) -> Serving:
        session = RewardSession(Judge(format or Pointwise(), options.pop("engine", engine)), settings)
        opened.append(Serving(session, **options).__enter__())
        return opened[-1]

    yield serve
    for serving in opened:
        serving.__exit__()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flexjudge-")]


def group(*candidates: Any, **more: Any) -> dict[str, Any]:
    return {"question": "q", "candidates": list(candidates), **more}


# ---- /judge


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=lambda format: format.name)
def test_groups_are_judged_and_failures_are_null_with_their_kind(format: Format, serve: Serve) -> None:
    serving = serve(format)
    status, answer = serving.ask("/judge", {"groups": [group("1", "10"), group("broken", "4"), group("7", "7")]})
    first, second, third = answer["groups"]
    assert status == 200 and first["scores"] == first["rewards"] == [0, 1] and first["failures"] == [None, None]
    assert third["scores"] == pytest.approx([6 / 9] * 2) and third["reasoning"] == ["so", "so"]
    assert second["failures"][0] == {"kind": "transport", "detail": "no route", "cause": None}
    alone = format.max_candidates == 1
    assert second["scores"] == ([None, pytest.approx(3 / 9)] if alone else [None, None])
    assert second["rewards"] == ([pytest.approx(3 / 9)] * 2 if alone else [None, None])


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(["What is it?", {"image": PNG}], id="base64"),
        pytest.param([{"type": "image", "image": uri(saved(noise()))}, "What is it?"], id="data-uri"),
        pytest.param(
            [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"image": PNG}]}], id="conversation"
        ),
        pytest.param([{"video": [PNG, PNG], "fps": 1.0}, "What is it?"], id="frames"),
    ],
)
def test_media_are_judged_from_their_bytes(question: Any, serve: Serve, engine: Engine) -> None:
    status, answer = serve().ask("/judge", {"groups": [{"question": question, "candidates": ["4"]}]})
    assert status == 200 and answer["groups"][0]["scores"] == pytest.approx([3 / 9])
    (shown,) = engine.prompts[0].media
    assert shown.images()[0].tobytes() == noise().tobytes()


@pytest.mark.parametrize("cached", [False, True])
def test_a_judge_on_a_server_is_asked_while_later_media_are_read(
    cached: bool, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def replied(request: Request) -> str:
        asked.set()
        return scores(request)

    def read(judge: Judge, shown: Sequence[Example], **_: Any) -> None:
        assert shown[-1].question[0] != "the last" or asked.wait(10)

    monkeypatch.setattr(Judge, "read", read)
    served = Served(replied)
    serving = serve(engine=CachedEngine(served, tmp_path / "c.sqlite") if cached else served)
    questions = [*(f"row {number}" for number in range(63)), "the last"]
    groups = [{"question": [text, {"image": PNG}], "candidates": ["4"]} for text in questions]
    status, answer = serving.ask("/judge", {"groups": groups})
    assert status == 200 and [one["scores"] for one in answer["groups"]] == [[pytest.approx(3 / 9)]] * 64
    assert served.most > 1


def test_an_image_that_is_damaged_fails_its_row_only(serve: Serve) -> None:
    damaged = {"question": ["What?", {"image": PNG[:40]}], "candidates": ["4"]}
    _, answer = serve().ask("/judge", {"groups": [damaged, group("4")]})
    bad, good = answer["groups"]
    assert bad["failures"][0]["kind"] == "media" and good["scores"] == pytest.approx([3 / 9])


def test_a_group_may_come_in_several_requests(serve: Serve) -> None:
    serving = serve(Listwise(), deadline=1.0)
    with ThreadPoolExecutor(5) as pool:
        parts = [group(text, group={"id": "g", "size": 4}) for text in ("1", "4", "7", "10")]
        other = {**group("5", group={"id": "g", "size": 4}), "question": "another"}
        found = list(pool.map(lambda part: serving.ask("/judge", {"groups": [part]})[1]["groups"][0], [*parts, other]))
    assert [one["scores"][0] for one in found[:4]] == pytest.approx([0, 3 / 9, 6 / 9, 1])
    assert found[4]["scores"] == [None] and found[4]["failures"][0]["kind"] == "timeout"


# ---- other protocols


def test_openrlhf_gets_numbers_and_a_log_value(serve: Serve) -> None:
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    body = {"query": [f"{prompt}7<|im_end|>", f"{prompt}broken"], "prompts": [prompt, prompt], "labels": ["a", "b"]}
    status, answer = serve().ask("/get_reward", body)
    assert status == 200 and answer["rewards"] == answer["scores"] == pytest.approx([6 / 9, 6 / 9])
    assert answer["extra_logs"] == {"judge_failed": [0.0, 1.0]}


def test_a_failed_row_alone_gets_the_mean_of_the_latest_scores(serve: Serve) -> None:
    serving = serve()
    for text, expected in (("broken", 0.5), ("1", 0.0), ("broken", 0.0), ("7", 6 / 9), ("broken", 3 / 9)):
        assert serving.ask("/rm", {"prompt": "q", "response": text}) == (200, pytest.approx(expected))
    other = {"query": ["q10", "q4", "Qbroken", "q broken"], "prompts": ["q", "q", "Q", "q"]}
    found = serving.ask("/get_reward", other)[1]["rewards"]
    assert found == pytest.approx([1, 3 / 9, 1 / 2, 2 / 3])


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        pytest.param("/rm", {"prompt": "q", "response": "10", "label": "x"}, 1.0, id="slime"),
        pytest.param("/rm", {"prompt": [{"role": "user", "content": "q"}], "response": "1"}, 0.0, id="slime-messages"),
        pytest.param("/rm", {"prompt": "q", "response": "broken"}, 0.5, id="slime-failed"),
        pytest.param(
            "/scores", {"model": "model", "messages": ["<|im_start|>user\nq<|im_start|>assistant\n10<|im_end|>\n"]},
            {"scores": [1.0]}, id="llama-factory",
        ),
    ],
)  # fmt: skip
def test_single_rows(path: str, body: Any, expected: Any, serve: Serve) -> None:
    assert serve().ask(path, body) == (200, expected)


def test_the_label_is_the_reference_where_it_is_named_so(serve: Serve, engine: Engine) -> None:
    serve(settings={"reference_column": "label"}).ask("/rm", {"prompt": "q", "response": "4", "label": "the truth"})
    assert "the truth" in str(engine.prompts[0])


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        pytest.param("/judge", b"{", "the body is not JSON", id="no-json"),
        pytest.param("/judge", b"[" * 100_000, "the body is not JSON", id="deep"),
        pytest.param("/judge", b'{"groups": NaN}', "the body is not JSON", id="nan"),
        pytest.param("/judge", b"\xff", "the body is not JSON", id="bytes"),
        pytest.param("/judge", [], "not a JSON object", id="list"),
        pytest.param("/judge", {"groups": []}, "at least one group", id="empty"),
        pytest.param("/judge", {"groups": [group("a")], "x": 1}, "at least one group", id="unknown"),
        pytest.param("/judge", {"groups": ["a"]}, "a group is an object with question, candidates", id="no-group"),
        pytest.param("/judge", {"groups": [group("a", path="/etc")]}, "a group is an object with", id="unknown-entry"),
        pytest.param(
            "/judge", {"groups": [{**group(), "candidates": "bad"}]}, "'candidates' must be a list", id="text"
        ),
        pytest.param("/judge", {"groups": [group()]}, "'candidates' must be a list with at least one", id="none"),
        pytest.param("/judge", {"groups": [group(7.5, {})]}, "a part is a text or one of text, image", id="parts"),
        pytest.param(
            "/judge", {"groups": [group("a", completion="x")]}, "'completion' must be one of", id="completion"
        ),
        pytest.param("/judge", {"groups": [group("a", group={"id": "g"})]}, "'group' is {'id': text", id="size"),
        pytest.param("/judge", {"groups": [group("a", group={"id": "g", "size": 9**9})]}, "to 1024", id="large"),
        pytest.param("/judge", {"groups": [group(*"a" * 9)]}, "at most 8 rows, this one has 9", id="too-many"),
        pytest.param("/judge", {"groups": [group({"image": "/etc/passwd"})]}, "never as a path", id="path"),
        pytest.param("/judge", {"groups": [group({"image": {"path": "/etc/passwd"}})]}, "in base64", id="dict"),
        pytest.param("/judge", {"groups": [group({"type": "image", "url": "file:///x"})]}, "in base64", id="file"),
        pytest.param("/judge", {"groups": [group({"image_url": {"url": "http://127.0.0.1/"}})]}, "base64", id="url"),
        pytest.param("/judge", {"groups": [group({"video": ["a.mp4"]})]}, "the bytes of a video", id="video"),
        pytest.param("/judge", {"groups": [group({"type": "image"})]}, "has no source", id="no-source"),
        pytest.param("/judge", {"groups": [group("a", rubric="/etc/rubric.toml")]}, "a rubric is", id="rubric"),
        pytest.param("/get_reward", {"query": "bad"}, "'query' must be a list of one or more texts", id="query"),
        pytest.param("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, "'prompts' must be a list of 1", id="two"),
        pytest.param("/get_reward", {"query": ["a"], "labels": 7}, "'labels' must be a list of 1", id="labels"),
        pytest.param("/get_reward", {"query": ["ab"], "prompts": ["b"]}, "does not begin with its prompt", id="other"),
        pytest.param("/rm", {"prompt": 7}, "'response', a text", id="response"),
        pytest.param("/scores", {"messages": [7]}, "'messages' must be a list", id="messages"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(path: str, body: Any, message: str, serve: Serve, engine: Engine) -> None:
    status, answer = serve(rows=8).ask(path, body)
    assert status == 400 and message in answer["error"] and not engine.requests


@pytest.mark.parametrize(
    "path", ["/judge", "/get_reward", "/rm", "/scores", "/metrics", "/nothing", "/health/../judge"]
)
def test_without_the_token_nothing_is_told(path: str, serve: Serve) -> None:
    serving = serve(token="secret")
    wrong: list[dict[str, str]] = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}]
    for headers in [*wrong, {"Authorization": "Bearer"}, {"Authorization": "Basic eDp3cm9uZw=="}]:
        for body in (None, {"groups": [group("4")]}):
            assert serving.ask(path, body, **headers) == (401, {"error": "Unauthorized"})
    assert serving.ask("/health")[0] == 200


def test_the_token_is_a_bearer_token_or_the_password_of_an_address(serve: Serve) -> None:
    serving, basic = serve(token="secret"), base64.b64encode(b"any:secret").decode()
    for given in ("Bearer secret", f"Basic {basic}"):
        assert serving.ask("/rm", {"prompt": "q", "response": "10"}, Authorization=given) == (200, 1.0)


def test_a_group_format_needs_groups_and_workers_do_not_share_them(serve: Serve) -> None:
    serving = serve(Pairwise(), alone=False)
    assert "has no groups" in serving.ask("/rm", {"prompt": "q", "response": "1"})[1]["error"]
    parted = group("1", group={"id": "g", "size": 2})
    assert "several workers" in serving.ask("/judge", {"groups": [parted]})[1]["error"]


# ---- trouble


def test_above_the_failure_limit_callers_are_asked_to_come_again(serve: Serve) -> None:
    serving = serve(settings={"max_failure_rate": 0.002})
    assert serving.ask("/rm", {"prompt": "q", "response": "broken"})[0] == 200
    status, answer = serving.ask("/rm", {"prompt": "q", "response": "broken"})
    assert status == 503 and "2 of the last 2 judgements failed" in answer["error"]
    assert serving.ask("/rm", {"prompt": "q", "response": "10"}) == (200, 1.0)


def test_failures_of_one_caller_harm_no_other_and_stay_failures(serve: Serve) -> None:
    serving = serve(settings={"max_failure_rate": 0.002})
    for _ in range(3):
        status, answer = serving.ask("/judge", {"groups": [group("broken", "broken"), group("10")]})
        assert status == 200 and answer["groups"][0]["failures"][0]["kind"] == "transport"


@pytest.mark.parametrize("path", ["/rm", "/judge"])
def test_past_a_ceiling_nothing_is_asked_and_clients_stop(path: str, serve: Serve) -> None:
    counted = ScriptedEngine(lambda request: Generation(tags(7), prompt_tokens=100, completion_tokens=50))
    serving = serve(engine=counted, settings={"max_judge_tokens": 200, "probes": 0.0})
    found = [
        serving.ask(path, {"prompt": "q", "response": str(n)} if path == "/rm" else {"groups": [group(str(n))]})
        for n in range(4)
    ]
    assert [status for status, _ in found] == [200, 402, 402, 402] and len(counted.requests) == 2
    with pytest.raises(CostLimitReached, match="has stopped: judging took 300 tokens"):
        client.RemoteJudge(serving.url, 5.0).judge_groups([Example("q", ["10"])])


def test_an_alarm_that_stops_the_server_ends_its_clients(serve: Serve) -> None:
    serving = serve()
    judge = client.RemoteJudge(serving.url, 5.0)
    serving.server.session.stopped = JudgementFailed("probes score high (on_alarm='stop')")
    assert serving.ask("/rm", {"prompt": "q", "response": "1"})[0] == 409
    with pytest.raises(JudgementFailed, match="has stopped: probes score high"):
        judge.judge_groups([Example("q", ["10"])])


def test_the_bytes_of_waiting_bodies_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.trainers.intake._ROOM_S", 0.1)
    monkeypatch.setattr("flexjudge_reward.trainers.intake._HELD_BYTES", 1500)
    serving = serve(Listwise(), deadline=1.0)
    parts = [{"groups": [group("7" * 1000, group={"id": name, "size": 2})]} for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda body: serving.ask("/judge", body), parts))
    assert sorted(status for status, _ in found) == [200, 503]
    assert serving.server._intake.bytes == serving.server._intake.rows == 0


@pytest.mark.parametrize("format", [Pairwise(), MultipleChoice()], ids=lambda format: format.name)
def test_a_judge_of_groups_is_healthy_before_its_first_group(format: Format, serve: Serve) -> None:
    assert serve(format).ask("/health")[0] == 200


def test_a_judge_that_answers_nothing_is_503_and_turns_health_red(serve: Serve, engine: Engine) -> None:
    serving, engine.error = serve(), EngineError("no server answers")
    assert serving.ask("/rm", {"prompt": "q", "response": "1"}) == (503, {"error": "no server answers"})
    assert serving.ask("/health") == (503, {"status": "the judge does not answer"})
    engine.error = ZeroDivisionError("a bug")
    status, answer = serving.ask("/rm", {"prompt": "q", "response": "1"})
    assert status == 500 and "ZeroDivision" not in str(answer)


def test_health_asks_the_model_and_not_the_cache(serve: Serve, engine: Engine, tmp_path: Path) -> None:
    cached = CachedEngine(engine, tmp_path / "cache.sqlite")
    serving = serve(engine=cached)
    assert serving.ask("/rm", {"prompt": "q", "response": "10"}) == (200, 1.0)
    assert serving.ask("/health")[0] == 200 and len(engine.requests) == 1  # that was a judgement of the model
    engine.fails, serving.server._pulse._answered = True, float("-inf")
    assert serving.ask("/rm", {"prompt": "q", "response": "10"}) == (200, 1.0)  # from the cache
    assert serving.ask("/health")[0] == 503


def test_full_means_wait_and_then_503(serve: Serve, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.trainers.intake._ROOM_S", 0.1)
    serving, engine.blocked = serve(rows=1), threading.Event()
    body = {"prompt": "q", "response": "10"}
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(serving.ask, "/rm", body), pool.submit(serving.ask, "/rm", body)
        done = next(one for one in iter(lambda: next((f for f in (first, second) if f.done()), None), 0) if one)
        assert done.result()[0] == 503 and "there is room for 1" in done.result()[1]["error"]
        engine.blocked.set()
        assert {first.result()[0], second.result()[0]} == {200, 503}


def test_what_is_judged_is_answered_before_the_end(engine: Engine) -> None:
    engine.blocked = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with Serving(RewardSession(Judge(Pointwise(), engine))) as serving:
            asked = pool.submit(serving.ask, "/rm", {"prompt": "q", "response": "10"})
            while not serving.server._intake.rows:
                pass
            threading.Timer(0.5, engine.blocked.set).start()
        assert asked.result() == (200, 1.0)
    assert engine.closed


def test_metrics_are_prometheus_text(serve: Serve) -> None:
    serving = serve()
    serving.ask("/judge", {"groups": [group("10", "broken")]})
    status, text = serving.ask("/metrics")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    found = {name.partition("{")[0] + name.partition('",')[2]: float(value) for name, value in lines.items()}
    assert status == 200 and found['flexjudge_requests_totalroute="/judge",status="200"}'] == 1
    assert found["flexjudge_rows_total"] == 2 and found['flexjudge_failures_totalkind="transport"}'] == 1


# ---- the client


def mixed(count: int = 6) -> tuple[list[Any], list[Any]]:
    images = [Media.image(noise(seed=seed)) for seed in range(2)]
    prompts = [
        [{"role": "user", "content": [{"type": "image", "image": images[n // 3]}, "which?"]}] for n in range(count)
    ]
    return prompts, ["3", "10", "<think>never ends", "<think>well</think>5", "broken", "unreadable"]


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=lambda format: format.name)
def test_rewards_from_a_server_are_those_of_a_judge_here(format: Format, serve: Serve, engine: Engine) -> None:
    prompts, completions = mixed()
    here, there = FlexJudgeReward(judge=serve(format).session.judge), FlexJudgeReward(reward_server=serve(format).url)
    names: dict[str, list[Any]] = {"here": [], "there": []}
    for name, reward in (("here", here), ("there", there)):
        for _ in range(2):
            names[name].append(reward(prompts, completions, log_extra=lambda *extra, n=name: names[n].append(extra[1])))
    assert names["here"] == names["there"]
    assert (
        there.summary.failures == here.summary.failures
        and there.session.judge.described() == here.session.judge.described()
    )


def test_a_client_waits_for_a_server_that_is_gone(
    serve: Serve, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = client.RemoteJudge(serve().url, 5.0)
    engine.error = EngineError("restarting")
    threading.Timer(0.3, lambda: setattr(engine, "error", None)).start()
    (result,) = judge.judge_groups([Example("q", ["10"])])
    assert result.outcomes == (1.0,)
    judge.url, judge.patience = "http://127.0.0.1:9", 0.3
    (result,) = judge.judge_groups([Example("q", ["10", "1"])])
    assert [one.kind for one in result.outcomes] == ["transport"] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"reward_server": "judge:8900"}, ConfigError, "must be an address such as", id="address"),
        pytest.param(
            {"reward_server": "http://x", "model": "nano"}, ConfigError, "leave out the argument model", id="two-judges"
        ),
        pytest.param(
            {"reward_server": "http://x", "max_judge_tokens": 9}, ConfigError, "max_judge_tokens cannot be", id="tokens"
        ),
        pytest.param(
            {"reward_server": "http://x", "max_cost": 9.0, "prompt_price": 1.0},
            ConfigError,
            "max_cost cannot",
            id="cost",
        ),
        pytest.param({"reward_server": "http://127.0.0.1:9"}, EngineError, "no reward server answers at", id="dead"),
    ],
)
def test_a_wrong_server_is_named(
    settings: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FIRST_S", 0.2)
    with pytest.raises(error, match=message):
        _ = RewardSession(settings=settings).judge


def test_a_named_reward_at_a_server_has_no_judge_settings(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLEXJUDGE_REWARD_SERVER", serve().url)
    monkeypatch.setenv("FLEXJUDGE_FORMAT", "listwise")
    monkeypatch.setenv("FLEXJUDGE_SHORT__RUBRIC", "faithfulness")
    monkeypatch.setenv("FLEXJUDGE_OTHER__ON_FAILURE", "abstain")
    with pytest.raises(ConfigError, match="leave out the environment variable FLEXJUDGE_SHORT__RUBRIC"):
        _ = RewardSession(name="short").judge
    other = RewardSession(name="other")
    assert other.overlaps and other.judge.format.name == "pointwise" and other.config.on_failure == "abstain"
    assert "without effect here: the environment variable FLEXJUDGE_FORMAT" in caplog.messages[-1]


def test_a_client_names_what_the_server_refuses(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="rejects the token: set FLEXJUDGE_SERVE_TOKEN"):
        client.RemoteJudge(serve(token="secret").url, 5.0)
    monkeypatch.setenv("FLEXJUDGE_SERVE_TOKEN", "secret")
    judge = client.RemoteJudge(serve(Listwise(), token="secret").url, 5.0)
    with pytest.raises(ConfigError, match=r"refuses the rows: .* judges"):
        judge.judge_groups([Example("q", ["10"])])


def test_a_page_that_is_no_reward_server_is_named(serve: Serve) -> None:
    with pytest.raises(EngineError, match="is not a reward server"):
        client.RemoteJudge(serve().url + "/nothing", 5.0)


def test_json_of_a_group_is_plain(serve: Serve) -> None:
    from flexjudge_reward.trainers.wire import group_json, rows_of

    example = Example(["q", Media.image(noise())], ["a", [Media.image(b"no image")]], ["r"])
    rows, name, size = rows_of(json.loads(json.dumps(group_json(example))), "answer")
    assert (name, size) == (None, 2) and rows[0] == Example(example.question, ["a"], ["r"])
