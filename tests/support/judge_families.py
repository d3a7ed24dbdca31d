"""Chat templates and control tokens of the model families that people judge with, in our own words.

Written from the public descriptions of the formats, and only as far as a judge's prompt needs them. Each family also
has a reply as its models write it, control tokens included.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexjudge_reward.engines.model import Chat

_GOOD = "<think>fine</think><answer>7</answer>"


@dataclass(frozen=True)
class ModelFamily:
    """One family."""

    name: str
    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()  # added tokens that are not special
    end: str = ""
    reply: str = _GOOD
    system_turn: bool = True
    image: str = ""  # how the template marks an image; empty for a family that reads text only
    begun: str = ""  # how the prompt ends

    def chat(self) -> Chat:
        """The family's renderer, on a byte-level tokenizer with its control tokens."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        letters = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in self.special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.plain])
        return Chat(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=self.end), self.template)


def _parts(text: str, image: str, video: str = "") -> str:
    """A template's loop over the parts of a turn."""
    return (
        "{%- if message.content is string %}{{ message.content }}{%- else %}{%- for part in message.content %}"
        f"{{%- if part.type == 'text' %}}{text}{{%- elif part.type == 'image' %}}{image}"
        f"{{%- elif part.type == 'video' %}}{video or image}{{%- endif %}}{{%- endfor %}}{{%- endif %}}"
    )


def _chatml(image: str, begun: str = "<|im_start|>assistant\n", before: str = "") -> str:
    turn = "<|im_start|>{{ message.role }}\n" + _parts("{{ part.text }}", image) + "<|im_end|>\n"
    return before + "{%- for message in messages %}" + turn + "{%- endfor %}" + begun


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_LLAMA_HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
_GEMMA = """{{ bos_token or '' }}{%- if messages[0].role == 'system' %}{%- set first = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\n\n' %}{%- set turns = messages[1:] %}{%- else %}{%- set first = '' %}{%- set turns = messages %}{%- endif %}{%- for message in turns %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ first if loop.first else '' }}PARTS<end_of_turn>
{%- endfor %}
<start_of_turn>model
"""  # noqa: E501
_MISTRAL = """{{ '<s>' }}{%- for message in messages %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant') }}{%- endif %}{%- if message.role == 'user' %}[INST] {{ message.content }} [/INST]{%- else %}{{ message.content }}</s>{%- endif %}{%- endfor %}"""  # noqa: E501
_HARMONY = """<|start|>system<|message|>Reasoning: medium<|end|>{%- for message in messages %}<|start|>{{ 'developer' if message.role == 'system' else message.role }}<|message|>{{ message.content }}<|end|>{%- endfor %}<|start|>assistant"""  # noqa: E501
_DEEPSEEK = """{{ '<｜begin▁of▁sentence｜>' }}{%- for message in messages %}{%- if message.role == 'system' %}{{ message.content }}{%- elif message.role == 'user' %}<｜User｜>{{ message.content }}{%- else %}<｜Assistant｜>{{ message.content }}<｜end▁of▁sentence｜>{%- endif %}{%- endfor %}<｜Assistant｜><think>
"""  # noqa: E501
_DROPS = """{%- for message in messages %}{%- if message.role == 'user' %}<user>{{ message.content }}</user>{%- endif %}{%- endfor %}<model>"""  # noqa: E501
_GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"

FAMILIES = [
    ModelFamily("Qwen2.5-VL", _chatml(_QWEN_IMAGE), _QWEN, end="<|im_end|>", image="<|image_pad|>"),
    ModelFamily(
        "Qwen3-VL",
        _chatml(_QWEN_IMAGE),
        _QWEN,
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        end="<|im_end|>",
        image="<|image_pad|>",
    ),
    ModelFamily(
        "Gemma 3",
        _GEMMA.replace("PARTS", _parts("{{ part.text }}", "<start_of_image>")),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
        end="<end_of_turn>",
        image="<start_of_image>",
        begun="<start_of_turn>model",
    ),
    ModelFamily(
        "Gemma 2",
        "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
        "{%- for message in messages %}<start_of_turn>{{ message.role }}\n{{ message.content }}<end_of_turn>\n"
        "{%- endfor %}<start_of_turn>model\n",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        end="<end_of_turn>",
        system_turn=False,
    ),
    ModelFamily(
        "Llama 3.x",
        "<|begin_of_text|>{%- for message in messages %}"
        + _LLAMA_HEAD.format("{{ message.role }}")
        + _parts("{{ part.text }}", "<|image|>")
        + "<|eot_id|>{%- endfor %}"
        + _LLAMA_HEAD.format("assistant"),
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|image|>"),
        end="<|eot_id|>",
        image="<|image|>",
    ),
    ModelFamily(
        "Mistral 7B, Prometheus", _MISTRAL, ("<s>", "</s>"), ("[INST]", "[/INST]"), end="</s>", system_turn=False
    ),
    ModelFamily(
        "Magistral",
        "<s>{%- for message in messages %}{%- if message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content }}"
        "[/SYSTEM_PROMPT]{%- else %}[INST]{{ message.content }}[/INST]{%- endif %}{%- endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
        end="</s>",
        reply="[THINK]fine[/THINK]<answer>7</answer>",
    ),
    ModelFamily(
        "GLM-4.xV",
        "[gMASK]<sop>{%- for message in messages %}<|{{ message.role }}|>\n"
        + _parts("{{ part.text }}", _GLM_IMAGE)
        + "{%- endfor %}<|assistant|>\n",
        tuple(
            "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|begin_of_image|> <|image|> <|end_of_image|>"
            " <|endoftext|> <|begin_of_box|> <|end_of_box|>".split()
        ),
        ("<think>", "</think>"),
        end="<|user|>",
        reply="<think>fine</think><|begin_of_box|><answer>7</answer><|end_of_box|>",
        image="<|image|>",
    ),
    ModelFamily(
        "InternVL",
        _chatml("<image>"),
        ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<image>"),
        end="<|im_end|>",
        image="<image>",
    ),
    ModelFamily(
        "gpt-oss (harmony)",
        _HARMONY,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        end="<|return|>",
        reply="<|channel|>analysis<|message|>fine<|end|><|start|>assistant<|channel|>final<|message|><answer>7</answer>",
    ),
    ModelFamily(
        "DeepSeek-R1",
        _DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
        end="<｜end▁of▁sentence｜>",
        reply="fine\n</think><answer>7</answer>",
        begun="<｜Assistant｜><think>",
    ),
    ModelFamily(
        "DeepSeek V3.1",
        _DEEPSEEK.replace("<think>\n", "{{ '<think>' if thinking else '</think>' }}"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
        end="<｜end▁of▁sentence｜>",
        reply="fine\n</think><answer>7</answer>",
        begun="<｜Assistant｜><think>",
    ),
    ModelFamily(
        "EXAONE 4",
        "{%- for message in messages %}[|{{ message.role }}|]\n{{ message.content }}[|endofturn|]\n{%- endfor %}"
        "[|assistant|]\n<think>\n{{ '' if enable_thinking else '\n</think>\n\n' }}",
        ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
        ("<think>", "</think>"),
        end="[|endofturn|]",
        reply="fine\n</think>\n\n<answer>7</answer>",
        begun="[|assistant|]\n<think>\n",
    ),
    ModelFamily(
        "SmolVLM, Idefics 3",
        "<|im_start|>{%- for message in messages %}{{ message.role | capitalize }}: "
        + _parts("{{ part.text }}", "<image>")
        + "<end_of_utterance>\n{%- endfor %}Assistant:",
        ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"),
        end="<end_of_utterance>",
        image="<image>",
        begun="Assistant:",
    ),
    ModelFamily(
        "Phi-4 multimodal",
        "{%- for message in messages %}<|{{ message.role }}|>" + _parts("{{ part.text }}", "<|image_1|>") + "<|end|>"
        "{%- endfor %}<|assistant|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<|image_1|>"),
        end="<|end|>",
        image="<|image_1|>",
        begun="<|assistant|>",
    ),
    ModelFamily(
        "Kimi-VL",
        "{%- for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>"
        + _parts("{{ part.text }}", "<|media_start|>image<|media_content|><|media_pad|><|media_end|>")
        + "<|im_end|>{%- endfor %}<|im_assistant|>assistant<|im_middle|>",
        tuple(
            "<|im_system|> <|im_user|> <|im_assistant|> <|im_middle|> <|im_end|> <|media_start|> <|media_content|>"
            " <|media_pad|> <|media_end|> [EOS]".split()
        ),
        end="<|im_end|>",
        reply="◁think▷fine◁/think▷<answer>7</answer>",
        image="<|media_pad|>",
    ),
    ModelFamily(
        "think tags as special tokens",
        _chatml(_QWEN_IMAGE),
        (*_QWEN, "<think>", "</think>", "<answer>", "</answer>"),
        end="<|im_end|>",
        image="<|image_pad|>",
    ),
    ModelFamily(
        "a template without a system turn", _DROPS, ("<user>", "</user>", "<model>"), end="</user>", system_turn=False
    ),
]


def parted(shown: str) -> ModelFamily:
    """A family whose template shows the parts of a turn in this way."""
    turn = "<|im_start|>{{ message.role }}\n{%- if message.content is string %}{{ message.content }}{%- else %}"
    template = "{%- for message in messages %}" + turn + shown + "{%- endif %}<|im_end|>\n{%- endfor %}"
    return ModelFamily("parted", template, ("<|im_start|>", "<|im_end|>", "<image>"), end="<|im_end|>")


def encoded(chat: Chat, text: str) -> list[int]:
    """The ids of a text, its added tokens among them."""
    return list(chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
