"""Molecule tokens: graphs, the converted model, the merge, and engines that cannot show them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Judge,
    Media,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ScriptedEngine,
    ServerEngine,
    TransformersEngine,
    Untrusted,
    VLLMEngine,
)
from flexjudge_reward.media.molecule import TOKENS
from support import mol_parts
from support.images import refused
from support.late import late, needs

needs("torch", "transformers", "rdkit")
torch = late("torch")
safe = late("safetensors.torch")
convert = late("flexjudge_reward.engines.molecules.convert")
graphs = late("flexjudge_reward.engines.molecules.graphs")

SMILES = ("CCO", "CC(=O)Oc1ccccc1C(=O)O", "[Na+].[Cl-]", "C/C=C/[C@H](N)F", "C")


def tokens(smiles: str) -> Media:
    return Media.molecule(smiles, as_="tokens")


def ask(*parts: Any, length: int = 8) -> Request:
    return Request(Prompt((Message("user", parts),)), Sampling(max_tokens=length, logprobs=0))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mol_parts.converted(tmp_path_factory.mktemp("mol"))


@pytest.fixture(scope="module")
def engine(nano: Path) -> TransformersEngine:
    return TransformersEngine(str(nano), device="cpu")


# ---------------------------------------------------------------- graphs


def test_a_graph_is_the_same_however_it_is_written() -> None:
    ethanol = tokens("OCC")
    assert ethanol == tokens("CCO") != Media.molecule("CCO") and ethanol.digest != Media.molecule("CCO").digest
    assert ethanol.as_judge_input() == (ethanol,) and ethanol.needs == TOKENS
    arrived = pickle.loads(pickle.dumps(ethanol))
    assert arrived == ethanol and arrived.needs == TOKENS and arrived.graph() == ethanol.graph()
    found = json.loads(ethanol.graph())
    assert found["symbols"] == ["C", "C", "O"] and len(found["bonds"]) == 2
    assert found["atoms"][2] == [7, 0, 2, 5, 1, 0, 2, 0, 0]  # oxygen, two neighbours, one hydrogen, SP3
    first, second, third = found["positions"]
    assert sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5 == pytest.approx(1.52, abs=0.03)
    assert Media.molecule("CCO").graph() == b"" and third != second


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        pytest.param("[H][H]", "no atom but hydrogen", id="hydrogen"),
        pytest.param("C1CC", "syntax", id="syntax"),
    ],
)
def test_a_molecule_without_a_graph_is_refused(smiles: str, message: str) -> None:
    refused(tokens(smiles), message)


GRAPH = {
    "atoms": [[5, 0, 4, 5, 4, 0, 2, 0, 0]],
    "bonds": [],
    "symbols": ["C"],
    "positions": [[0.0, 0.0, 0.0]],
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"atoms": [[119, 0, 4, 5, 4, 0, 2, 0, 0]]}, id="no_such_element"),
        pytest.param({"atoms": [[-1, 0, 4, 5, 4, 0, 2, 0, 0]]}, id="a_negative_number"),
        pytest.param({"atoms": [[5]]}, id="too_few_features"),
        pytest.param({"atoms": []}, id="no_atoms"),
        pytest.param({"bonds": [[0, 1, 0, 0, 0]]}, id="a_bond_to_nothing"),
        pytest.param({"bonds": [[0, 0, 5, 0, 0]]}, id="no_such_bond"),
        pytest.param({"positions": [[0.0, 0.0]]}, id="two_coordinates"),
        pytest.param({"positions": [[0.0, 0.0, float("nan")]]}, id="no_place"),
        pytest.param({"symbols": []}, id="no_symbols"),
        pytest.param({"symbols": 7}, id="a_number_for_symbols"),
        pytest.param({"atoms": "C"}, id="a_text_for_atoms"),
    ],
)
def test_an_edited_graph_never_reaches_the_model(changes: dict[str, Any]) -> None:
    graphs.collate([json.dumps(GRAPH).encode()])
    with pytest.raises(ValueError, match="the graph of a molecule"):
        graphs.collate([json.dumps(GRAPH | changes).encode()])
    with pytest.raises(ValueError, match="cannot be read"):
        graphs.collate([b"no JSON"])


# ---------------------------------------------------------------- the model


def test_a_batch_gives_what_each_prompt_gives_alone(engine: TransformersEngine) -> None:
    requests = [ask("Is ", tokens(smiles), " small?" * (1 + number)) for number, smiles in enumerate(SMILES)]
    requests.append(ask("Compare ", tokens("CCO"), tokens("c1ccccc1")))
    requests.append(ask("Say something."))
    together = engine.generate(requests)
    for request, one in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert one.failure is None and one.text == alone.text and one.prompt_tokens == alone.prompt_tokens
        pairs = zip(one.logprobs or (), alone.logprobs or (), strict=True)
        assert max(abs(a.logprob - b.logprob) for a, b in pairs) < 1e-5
    assert together[0].text != engine.generate([ask("Is ", tokens("CCN"), " small?")])[0].text


def test_a_molecule_has_eight_tokens_and_text_cannot_forge_one(engine: TransformersEngine) -> None:
    plain, shown, forged = engine.generate(
        [ask("Is  small?"), ask("Is ", tokens("CCO"), " small?"), ask("Is ", Untrusted("<mol>" * 8), " small?")]
    )
    assert shown.prompt_tokens == plain.prompt_tokens + 8 and forged.failure is None
    decoder = engine._decoder
    assert decoder is not None
    inputs = decoder.tokenizer("<mol>" * 9, return_tensors="pt")
    with pytest.raises(ValueError, match="8 tokens for each molecule, found 9 for 1 molecules"):
        decoder.model(**inputs, graphs=graphs.collate([tokens("C").graph()]))
    uneven = decoder.tokenizer(["<mol>" * 12, "<mol>" * 4 + "x" * 8], return_tensors="pt", padding=True)
    with pytest.raises(ValueError, match="8 tokens for each molecule, found 16 for 2 molecules"):
        decoder.model(**uneven, graphs=graphs.collate([tokens("C").graph(), tokens("CC").graph()]))
    assert decoder.chat.render(ask(Untrusted("a <mol> b")).prompt).count("<mol>") == 0


def test_a_molecule_that_fails_leaves_its_batch_alone(engine: TransformersEngine) -> None:
    bad, good, drawn = engine.generate(
        [ask(tokens("C1CC")), ask(tokens("CC")), ask(Media.molecule("CC", as_="drawing"))]
    )
    assert bad.failure is not None and bad.failure.kind == "media" and good.failure is None
    assert drawn.failure is not None  # the model reads no images


def test_it_reloads_as_it_was_saved_also_in_half_precision(
    nano: Path, engine: TransformersEngine, tmp_path: Path
) -> None:
    request = ask("Is ", tokens(SMILES[1]), " small?", length=20)
    (before,) = engine.generate([request])
    decoder = engine._decoder
    assert decoder is not None and sum(one.numel() for one in decoder.model.parameters()) < 1_000_000
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text((nano / "chat_template.jinja").read_text())
    assert TransformersEngine(str(tmp_path), device="cpu").generate([request])[0].text == before.text
    half = TransformersEngine(str(nano), device="cpu", dtype="bfloat16")
    assert half.generate([request])[0].failure is None and half._decoder is not None
    model = half._decoder.model
    assert model.llm.lm_head.weight.dtype == torch.bfloat16 and model.projection.weight.dtype == torch.float32


# ---------------------------------------------------------------- the merge


def test_the_merge_is_the_judges_but_for_lora_and_two_rows(nano: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    sources = mol_parts.parts(tmp_path / "parts")
    judge, released = (
        safe.load_file(sources["judge"] / "model.safetensors"),
        convert.tensors(sources["mol_llama"]),
    )
    rows = len(judge["lm_head.weight"]) + 2
    theirs = torch.randn(rows, mol_parts.HIDDEN)
    merged = convert.merged(
        dict(judge), {**released, "llm.base_model.model.model.embed_tokens.weight": theirs}, rows, 8
    )
    assert torch.equal(merged["model.embed_tokens.weight"][:-2], judge["model.embed_tokens.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"][-2:], theirs[-2:])
    assert torch.equal(merged["lm_head.weight"][:-2], judge["lm_head.weight"])
    assert torch.equal(merged["model.norm.weight"], judge["model.norm.weight"])
    llama = mol_parts.llama(rows - 2, 3)
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    config = peft.LoraConfig(r=mol_parts.RANK, lora_alpha=mol_parts.ALPHA, target_modules=names)
    adapted = peft.get_peft_model(llama, config)
    lora = {name.removeprefix("llm."): value for name, value in released.items() if "lora_" in name}
    assert not adapted.load_state_dict(lora, strict=False).unexpected_keys
    expected = adapted.eval().merge_and_unload().state_dict()
    for name, value in expected.items():
        if "layers" in name:
            assert (value - merged[name]).abs().max() < 1e-6, name


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


Parts = dict[str, Path]


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    held = safe.load_file(folder / "model.safetensors")
    edit(held)
    safe.save_file(held, folder / "model.safetensors")


def lora(change: Callable[[dict[str, Any], str], object], half: str) -> Callable[[Parts], object]:
    """Changes one tensor of the LoRA."""
    name = f"llm.base_model.model.model.layers.0.mlp.down_proj.lora_{half}.default.weight"
    return lambda parts: edited(parts["mol_llama"], lambda held: change(held, name))


def configured(**entries: Any) -> Callable[[Parts], object]:
    return lambda parts: (parts["mol_llama"] / "config.json").write_text(json.dumps(entries))


UP = "model.layers.0.mlp.up_proj.weight"
BAD: dict[str, tuple[Callable[[Parts], object], str]] = {
    "a_lora_of_another_name": (
        lora(lambda held, name: held.update({name.replace("default", "other"): held.pop(name)}), "A"),
        "the LoRA has a tensor 'llm.*lora_A.other.weight' of an unknown name",
    ),
    "a_lora_twice": (
        lora(lambda held, name: held.update({name.replace("default.", ""): held[name].clone()}), "B"),
        "of an unknown name",
    ),
    "half_a_lora_down": (
        lora(lambda held, name: held.pop(name), "A"),
        "lacks the LoRA of 'model.layers.0.mlp.down_proj'",
    ),
    "half_a_lora_up": (
        lora(lambda held, name: held.pop(name), "B"),
        "lacks the LoRA of 'model.layers.0.mlp.down_proj'",
    ),
    "two_ranks": (lora(lambda held, name: held.update({name: held[name][:2].clone()}), "A"), "different ranks"),
    "no_lora": (
        lambda parts: edited(
            parts["mol_llama"], lambda held: [held.pop(name) for name in list(held) if "lora_" in name]
        ),
        "lacks the LoRA of 'any layer'",
    ),
    "no_number": (configured(llm_config={"lora_config": {"lora_alpha": "many"}}), "lora_alpha='many': it is no number"),
    "damaged_safetensors": (
        lambda parts: (parts["mol_llama"] / "model.safetensors").write_bytes(b"PK" * 9),
        "is not a file of plain tensors",
    ),
    "an_old_file_beside_the_new": (
        lambda parts: safe.save_file({"lm_head.weight": torch.zeros(2, 2)}, parts["judge"] / "old.safetensors"),
        "has 'lm_head.weight', as another file there",
    ),
    "no_settings_of_the_tokenizer": (
        lambda parts: (parts["mol_llama"] / "tokenizer_config.json").unlink(),
        "tokenizer_config.json cannot be read",
    ),
    "queries_of_two_dimensions": (
        lambda parts: edited(parts["mol_llama"], lambda held: held.update({"encoder.query_tokens": torch.ones(3, 4)})),
        "fewer dimensions",
    ),
    "an_empty_tokenizer": (
        lambda parts: (parts["mol_llama"] / "tokenizer.json").write_text(
            '{"model": {"vocab": {}}, "added_tokens": []}'
        ),
        "does not end with <mol>",
    ),
    "a_pickle_that_runs_code": (
        lambda parts: torch.save({"model": Evil()}, parts["space"]),
        "is not a file of plain tensors",
    ),
    "a_damaged_file": (lambda parts: parts["flat"].write_bytes(b"PK"), "is not a file of plain tensors"),
    "no_file": (lambda parts: parts["flat"].unlink(), "there are no weights at"),
    "no_tensors": (lambda parts: torch.save({"a": 1}, parts["flat"]), "holds no tensors by their names"),
    "an_unknown_name": (
        lambda parts: edited(parts["mol_llama"], lambda held: held.update({"what.is": torch.ones(1)})),
        "a tensor of an unknown name, 'what.is'",
    ),
    "a_missing_tensor": (
        lambda parts: edited(parts["mol_llama"], lambda held: held.pop("llm_proj.bias")),
        "the parts lack the tensor 'projection.bias'",
    ),
    "another_shape": (
        lambda parts: edited(parts["mol_llama"], lambda held: held.update({"llm_proj.bias": torch.ones(3)})),
        r"'projection.bias' has the shape \(3,\)",
    ),
    "another_base": (
        lambda parts: edited(parts["judge"], lambda held: held.pop("model.layers.0.mlp.up_proj.weight")),
        "it has another base model",
    ),
    "a_quantised_tensor": (
        lambda parts: edited(parts["judge"], lambda held: held.update({UP: (held[UP] * 100).round().to(torch.int8)})),
        r"'llm.model.layers.0.mlp.up_proj.weight' is of torch.int8: give weights that are not quantised",
    ),
    "a_tensor_of_8_bit_floats": (
        lambda parts: edited(parts["judge"], lambda held: held.update({UP: held[UP].to(torch.float8_e4m3fn)})),
        "is of torch.float8_e4m3fn: give weights that are not quantised",
    ),
    "whole_numbers_in_an_encoder": (
        lambda parts: torch.save(
            {name: value.long() for name, value in torch.load(parts["flat"]).items()}, parts["flat"]
        ),
        "is of torch.int64",
    ),
    "no_number_in_the_judge": (
        lambda parts: edited(parts["judge"], lambda held: held["model.norm.weight"].fill_(float("nan"))),
        "'llm.model.norm.weight' has values that are no finite numbers",
    ),
    "no_number_in_the_lora": (lora(lambda held, name: held[name].fill_(float("inf")), "B"), "no finite numbers"),
    "no_number_in_the_release": (
        lambda parts: edited(parts["mol_llama"], lambda held: held["llm_proj.bias"].fill_(float("nan"))),
        "'projection.bias' has values that are no finite numbers",
    ),
    "no_llama": (
        lambda parts: (parts["judge"] / "config.json").write_text('{"model_type": "qwen2"}'),
        "is a qwen2, and Mol-LLaMA needs a llama",
    ),
    "another_tokenizer": (
        lambda parts: (parts["mol_llama"] / "tokenizer.json").write_text(
            '{"model": {"vocab": {"a": 0}}, "added_tokens": []}'
        ),
        "does not end with <mol>",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_parts_are_named_and_nothing_is_written(
    damage: Callable[[Parts], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = mol_parts.parts(tmp_path / "parts")
    damage(sources)
    with pytest.raises(ConfigError, match=message):
        convert.convert(**sources, output=tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]  # and no file "executed"


def test_half_precision_is_kept_and_the_options_of_a_training_are_read(tmp_path: Path) -> None:
    """A judge of 8 billion parameters would take twice its memory otherwise."""
    sources = mol_parts.parts(tmp_path / "parts")
    edited(sources["judge"], lambda held: held.update({name: one.bfloat16() for name, one in held.items()}))
    space = torch.load(sources["space"])
    torch.save({**space, "args": argparse.Namespace(arch="unimol_base", lr=[1e-4])}, sources["space"])
    convert.convert(**sources, output=tmp_path / "made")
    (reply,) = (engine := TransformersEngine(str(tmp_path / "made"), device="cpu")).generate([ask(tokens("CCO"))])
    assert reply.failure is None and engine._decoder is not None
    model = engine._decoder.model
    assert {one.dtype for one in model.llm.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in [*model.encoder.parameters(), *model.projection.parameters()]} == {torch.float32}


def test_a_folder_that_exists_is_left(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (nano / "config.json").stat().st_mtime_ns
    arguments = [f"--{name}=x" for name in ("judge", "mol_llama", "flat", "space")]
    monkeypatch.setattr(sys, "argv", ["convert", *arguments, f"--output={nano}"])
    with pytest.raises(SystemExit, match="exists already: give the name of a new folder"):
        convert.main()
    assert (nano / "config.json").stat().st_mtime_ns == before


# ---------------------------------------------------------------- judges and other engines


def test_only_the_transformers_engine_shows_them(nano: Path, engine: TransformersEngine) -> None:
    assert engine.supports(TOKENS) and not engine.supports("image")
    example = Example(["Permeable?", tokens("CCO")], ["Yes."])
    Judge(Pointwise(), engine).check_media(example)
    server = ServerEngine("http://127.0.0.1:9/v1", "m")
    for other in (TransformersEngine("nano"), VLLMEngine("nano"), VLLMEngine(str(nano)), server):
        assert not other.supports(TOKENS)
    for other in (TransformersEngine("nano"), VLLMEngine("nano")):
        with pytest.raises(ConfigError, match=re.escape("the judge nano cannot read molecule tokens: use a folder")):
            Judge(Pointwise(), other).check_media(example)
        reward = FlexJudgeReward(Judge(Pointwise(), other))
        part = {"type": "molecule", "molecule": "CCO", "as_": "tokens"}
        with pytest.raises(ConfigError, match="cannot read molecule tokens"):
            reward([[{"role": "user", "content": [part]}]], [[{"role": "assistant", "content": "Yes."}]])
    (reply,) = server.generate([ask(tokens("CCO"))])
    assert reply.failure is not None and reply.failure.kind == "unsupported"


def test_a_scripted_judge_may_be_shown_them_and_a_record_keeps_the_graph(tmp_path: Path) -> None:
    engine = ScriptedEngine(["<think>x</think><answer>7</answer>"])
    example = Example(["Permeable?", tokens("CCO")], ["Yes."])
    (verdict,) = Judge(Pointwise(), engine)([example])
    assert verdict.scores == (7.0,) and engine.prompts[0].shown == (tokens("OCC"),)
    ethanol = tokens("CCO")
    text, graph = ethanol.load().text, ethanol.graph().decode()
    again = Media.recorded("molecule", ethanol.digest, tmp_path, 0, text=text, graph=graph)
    assert again == ethanol and again.needs == TOKENS
    refused(
        Media.recorded("molecule", ethanol.digest, tmp_path, 0, text=text, graph=graph.replace("1", "2")), "not what"
    )
