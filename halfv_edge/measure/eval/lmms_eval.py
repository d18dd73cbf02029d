"""The plug-in of lmms-eval: `lmms_eval --model halfv --model_args model=model.gguf,profile=off --tasks textvqa_val`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError, RunError

MARK = "<image>"  # what task templates put where the picture goes
MAX_NEW_TOKENS = 128
PASSED_ON = ("batch_size", "max_batch_size", "device")  # by lmms-eval, to every model


def manifest() -> ModelManifest:
    """What the entry point gives."""
    return ModelManifest(model_id="halfv", simple_class_path=f"{__name__}.HalfV")


class HalfV(lmms):
    """A GGUF under its profile. `model_args` are those of Model.load; `model` is the file."""

    is_simple = True

    def __init__(self, model: str, **options: Any):
        super().__init__()
        if int(options.get("batch_size") or 1) != 1:
            raise HalfVError(f"batch_size = {options['batch_size']!r} is not valid: questions are asked one by one.")
        given = {name: value for name, value in options.items() if name not in PASSED_ON}
        self.halfv = Model.load(model, **given)
        self.n_pictures = self.n_pruned = 0

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        answers = []
        with self.halfv.chat(mode="exact") as chat:
            for request in tqdm(requests, desc="halfv", disable=None):
                context, settings, doc_to_visual, doc_id, task, split = request.args
                pictures = list(doc_to_visual(self.task_dict[task][split][doc_id]) or ())
                chat.reset()
                text = chat.answer(context.replace(MARK, "").strip(), pictures, **_options(settings))
                self.n_pictures += len(pictures)
                self.n_pruned += bool(pictures) and chat.stats.n_deep < chat.stats.n_patches
                answers.append(text)
                self.cache_hook.add_partial("generate_until", (context, settings), text)
        if self.halfv.profile and self.n_pictures and not self.n_pruned:
            raise RunError(f"{self.halfv.path.name} was to be pruned and never was, in {self.n_pictures} pictures.")
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("halfv answers questions; tasks that compare likelihoods need another model type.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("halfv asks single questions here; `halfv eval --follow-up` holds conversations.")


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """Chat.answer's, from what a task's generation_kwargs say."""
    until = settings.get("until") or ()
    options: dict[str, Any] = {
        "max_tokens": settings.get("max_new_tokens") or MAX_NEW_TOKENS,
        "temperature": (settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0,
        "stop": [text for text in ([until] if isinstance(until, str) else until) if text],
    }
    if settings.get("top_p"):
        options["top_p"] = settings["top_p"]
    return options
