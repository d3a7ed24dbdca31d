"""Prompts in a chat template are the messages that they were made of."""

from __future__ import annotations

import pytest

from flexjudge_reward.data.messages import Columns, examples
from flexjudge_reward.data.templated import messages_of
from support.images import noise


def test_the_system_turn_that_a_template_adds_is_no_turn_of_the_prompt() -> None:
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    asked = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert messages_of(system + asked) == messages_of(asked) == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("What is top left?", id="plain"),
        pytest.param("", id="empty"),
        pytest.param("<|im_start|>assistant\n", id="no-turn"),
        pytest.param("<|im_start|>user\na<|im_end|>\n", id="no-open-turn"),
        pytest.param("<|im_start|>user\na<|im_end|>\nb<|im_start|>assistant\n", id="text-between"),
        pytest.param("a <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", id="text-before"),
        pytest.param("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nThe", id="begun"),
        pytest.param("<|im_start|>user\na<|im_start|>assistant\n", id="no-end"),
        pytest.param("<|im_start|>a b\na<|im_end|>\n<|im_start|>assistant\n", id="no-role"),
    ],
)
def test_another_text_stays_as_it_is(text: str) -> None:
    assert messages_of(text) == text


def test_a_prompt_with_an_open_thought_is_read_too() -> None:
    assert messages_of("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n") == [
        {"role": "user", "content": "a"}
    ]


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        pytest.param("<|vision_start|><|image_pad|><|vision_end|>", "image", id="qwen"),
        pytest.param("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>", "image", id="qwen-as-many-as-patches"),
        pytest.param("<|vision_start|><|video_pad|><|vision_end|>", "video", id="qwen-video"),
        pytest.param("<start_of_image>", "image", id="gemma"),
    ],
)
def test_images_are_where_the_template_places_them(place: str, kind: str) -> None:
    asked = f"<|im_start|>user\nIs {place}a star?<|im_end|>\n<|im_start|>assistant\n"
    media = {f"{kind}s": [[[noise()] if kind == "video" else noise()]]}
    parts = [{"type": "text", "text": "Is "}, {"type": kind}, {"type": "text", "text": "a star?"}]
    messages = [{"role": "user", "content": parts}]
    found, known = (examples([prompt], ["yes"], media, Columns())[0] for prompt in (asked, messages))
    assert found.digest() == known.digest()
    bare = examples([asked], ["yes"], {}, Columns())[0]  # without an image, a text is no place
    assert bare.question == (f"Is <{kind}>a star?",)
