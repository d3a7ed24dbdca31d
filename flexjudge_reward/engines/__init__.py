"""Engines: how a prompt becomes a reply. Each hides batching, transport, chat template and media form.

    VLLMEngine          vLLM inside this process
    ServerEngine        any OpenAI-compatible server
    TransformersEngine  plain `generate`, also without an accelerator
    ScriptedEngine      replies from a list or a function, for tests

All build cheaply, load at the first `generate`, pickle before that and after, may be called from several threads, and
close within seconds. The contract is `types.Engine`; one test runs over all four.
"""

from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.engines.server import ServerEngine
from flexjudge_reward.engines.transformers import TransformersEngine
from flexjudge_reward.engines.vllm import VLLMEngine

__all__ = ["ScriptedEngine", "ServerEngine", "TransformersEngine", "VLLMEngine"]
