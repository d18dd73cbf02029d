"""A pytest plugin for upstream's own tests of llama-server: the demo model in place of models from the network.

Run from tools/server/tests of the pinned source with LLAMA_SERVER_BIN_PATH. What an answer must contain is what another
model says, so it is only asked that it is text.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo_server import MMPROJ, MODEL, PICTURES

ENCODER = "LLAMA_ARG_MMPROJ"
LOCAL = {
    "IMG_URL_0": 0,
    "IMG_URL_1": 1,
    "IMG_BASE64_URI_0": 0,
    "IMG_BASE64_URI_1": 1,
    "IMG_BASE64_0": 0,
    "IMG_BASE64_1": 1,
}

# what asks for tokens or words of another model, for a thinking model, or for an encoder from the network: with this
# model a stock server fails in the same way
OF_ANOTHER_MODEL = {
    "test_anthropic_messages_basic",
    "test_anthropic_messages_streaming",
    "test_anthropic_messages_with_system",
    "test_anthropic_thinking_history_in_count_tokens",
    "test_anthropic_thinking_history_in_template",
    "test_anthropic_thinking_with_reasoning_model",
    "test_anthropic_vision_base64_with_multimodal_model",
    "test_metrics_embedding_prompt_is_counted",
    "test_metrics_generation_rate_excludes_first_token",
    "test_slot_restore_legacy_token_list",
    "test_slot_restore_media_file_without_mmproj",
    "test_slot_save_restore",
    "test_slot_save_restore_image_payload_larger_than_context",
}

sys.modules.setdefault("wget", types.ModuleType("wget"))  # imported there, for downloads that do not happen


def pytest_configure(config: pytest.Config) -> None:
    sys.path.insert(0, os.getcwd())
    import utils  # type: ignore[import-not-found]

    makers = [name for name, maker in vars(utils.ServerPreset).items() if isinstance(maker, staticmethod)]
    for name in makers:
        setattr(utils.ServerPreset, name, staticmethod(_on_the_demo_model(getattr(utils.ServerPreset, name))))
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.match_regex = lambda _regex, text: isinstance(text, str)


def _on_the_demo_model(make: Any) -> Any:
    def made() -> Any:
        server = make()
        server.model_hf_repo = server.model_hf_file = None
        server.model_file = str(MODEL)
        server.offline = False
        server.n_threads = 1
        server.n_slots = server.n_slots or 2
        server.n_ctx = 1024 * server.n_slots
        os.environ.pop(ENCODER, None)
        if "gemma" in make.__name__:  # those that see
            os.environ[ENCODER] = str(MMPROJ)
        return server

    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.name.partition("[")[0] not in OF_ANOTHER_MODEL]
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        if hasattr(module, "get_img_url"):
            module.get_img_url = image_url
        if hasattr(module, "_get_img_base64"):
            module._get_img_base64 = lambda url: _base64(PICTURES["cat" in url])


def image_url(name: str) -> str:
    if name not in LOCAL:
        return re.sub(r"^https://(google.com|ggml.ai)", "https://127.0.0.1:1", name)
    data = _base64(PICTURES[LOCAL[name]])
    return data if name.startswith("IMG_BASE64_") and "URI" not in name else f"data:image/png;base64,{data}"


def _base64(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode()
