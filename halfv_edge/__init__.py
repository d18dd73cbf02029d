"""HalfV Edge: visual token pruning for llama.cpp.

The names below are the public ones. Each is imported when it is first used, so that `import halfv_edge` is fast.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from halfv_edge.lazy_names import lazy_names

if TYPE_CHECKING:
    from halfv_edge.draw.token_map import draw_token_map as draw_token_map
    from halfv_edge.engine.answer import Answer as Answer
    from halfv_edge.engine.async_answer import AsyncAnswer as AsyncAnswer
    from halfv_edge.engine.chat import Chat as Chat
    from halfv_edge.engine.many import Outcome as Outcome
    from halfv_edge.engine.model import Model as Model
    from halfv_edge.engine.options import AnswerOptions as AnswerOptions
    from halfv_edge.engine.options import ModelOptions as ModelOptions
    from halfv_edge.engine.stats import Stats as Stats
    from halfv_edge.engine.tokens import TokenMap as TokenMap
    from halfv_edge.errors import HalfVError as HalfVError
    from halfv_edge.errors import RunError as RunError
    from halfv_edge.handler.handler import HalfVChatHandler as HalfVChatHandler
    from halfv_edge.profile.profile import Profile as Profile

__version__ = version("halfv-edge")

_HOME = {
    "Answer": "engine.answer",
    "AnswerOptions": "engine.options",
    "AsyncAnswer": "engine.async_answer",
    "Chat": "engine.chat",
    "HalfVChatHandler": "handler.handler",
    "HalfVError": "errors",
    "Model": "engine.model",
    "ModelOptions": "engine.options",
    "Outcome": "engine.many",
    "Profile": "profile.profile",
    "RunError": "errors",
    "Stats": "engine.stats",
    "TokenMap": "engine.tokens",
    "draw_token_map": "draw.token_map",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
