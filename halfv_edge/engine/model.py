"""The Python API: load a model, open a chat, ask about pictures, iterate over the answer."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import os
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import halfv_cpp
from halfv_cpp import llama_h, log, machine
from halfv_cpp.tensor_types import KV_TYPES, TENSOR_TYPES

from halfv_edge.engine import libraries
from halfv_edge.engine.chat import Chat
from halfv_edge.engine.context import Context
from halfv_edge.engine.encoder import MMPROJ_TYPES, Encoder, find
from halfv_edge.engine.template import Template
from halfv_edge.engine.turn_lock import TurnLock
from halfv_edge.errors import HalfVError
from halfv_edge.profile import model_file, presets, resolve, stored
from halfv_edge.profile import profile as profiles
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.resolve import Resolved

DEFAULT_N_CTX = 8192
FLASH = {"auto": -1, False: 0, True: 1}
MAX_PIECE_BYTES = 4096

_open: weakref.WeakSet[Model] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before llama.cpp's own static objects go, and before its log has nowhere to go."""
    for model in list(_open):
        model.close()


class Model:
    """A language model with its vision encoder. Make one with `Model.load`, close it or use it in a `with`.

    Any thread may use it and its chats: one lock per model lets one native call run at a time, so that two chats that
    answer at once take turns token by token. A single chat answers one question at a time.
    """

    def __init__(self, path: Path, pointer: int, options: dict[str, Any]):
        self.path = path
        self.pointer = pointer
        self.lock = TurnLock()
        self.seed: int | None = options["seed"]
        self.topup_bytes: int = options["topup_bytes"]
        self.notes: list[str] = []  # what a person should know that is no error
        self.profile: Profile | None = None
        self.profile_source: str = "off"
        self.vocab = llama_h.llama_model_get_vocab(pointer)
        self.n_layer = llama_h.llama_model_n_layer(pointer)
        self.encoder: Encoder | None = None
        self._options = options
        self._free: Context | None = None  # of a chat that was closed
        self._chats: weakref.WeakSet[Chat] = weakref.WeakSet()
        _open.add(self)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mmproj: str | os.PathLike[str] | None = None,
        *,
        profile: Profile | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        keep: float | None = None,
        pixel_tau: float | Literal["off"] | None = None,
        visual_share: float | None = None,
        n_ctx: int | None = None,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        flash_attn: Literal["auto"] | bool = "auto",
        kv_type: str = "f16",
        seed: int | None = None,
        mmproj_type: str = "auto",
        image_max_tokens: int | None = None,
        image_cache_mb: int = 512,
        topup_mb: int = 256,
        verbose: bool = False,
    ) -> Model:
        """Load a model and its encoder.

        mmproj: the encoder's GGUF; looked for beside the model when not given.
        profile: a Profile, its JSON as a dict or a file, a preset's name or "off"; else what comes with the model.
        keep: the share of visual tokens in stage II, in place of the profile's.
        pixel_tau: in place of the profile's, for Qwen-VL: patches within so many of 255 levels of what their neighbours
        predict stay out of the encoder; 0 are equal ones, "off" is none.
        visual_share: of n_ctx, set aside for visual tokens, in place of the profile's: with 0.75 text has a quarter of
        it, and the KV cache of deeper layers is as much smaller as tokens are pruned. 0: text may fill all of it.
        n_ctx: tokens of a conversation, pictures included; 8192, or what the model was trained for if that is less.
        n_gpu_layers: -1 is all. kv_type: f16, q8_0, ... of the KV cache. seed: of every answer that names none.
        mmproj_type: of the encoder's weights in memory; "auto" is the fastest here that keeps its output, "file" is as
        they are stored, "off" as llama.cpp loads and computes them, else bf16, f16, q8_0, ...
        image_max_tokens: per picture, for encoders that take any size.
        image_cache_mb: encoded pictures that are remembered. topup_mb: pruned tokens that a later question can bring
        back. verbose: llama.cpp's log on stderr.
        """
        libraries.load()
        log.capture(verbose)
        about = model_file.ModelFile.read(path)
        encoder_path = find(mmproj, about)
        check_choice("kv_type", kv_type, KV_TYPES)
        check_choice("flash_attn", flash_attn, FLASH)
        check_choice("mmproj_type", mmproj_type, MMPROJ_TYPES)
        for name, number, least in (
            ("n_ctx", n_ctx, 1),
            ("n_threads", n_threads, 1),
            ("n_batch", n_batch, 1),
            ("n_ubatch", n_ubatch, 1),
            ("image_max_tokens", image_max_tokens, 1),
            ("image_cache_mb", image_cache_mb, 0),
            ("topup_mb", topup_mb, 0),
        ):
            if number is not None and number < least:
                raise HalfVError(parameter=name, value=number, rule=f"at least {least}")
        resolved = resolve_profile(about, profile, keep, pixel_tau, visual_share)

        llama_h.llama_backend_init()
        log.clear()
        params = llama_h.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        pointer = llama_h.llama_model_load_from_file(str(about.path).encode(), params)
        if not pointer:
            if log.out_of_memory():
                raise HalfVError(
                    f"There is not enough memory for {about.path}",
                    hint="lower {n_gpu_layers}, or use a smaller file",
                    settings={"n_gpu_layers": None},
                )
            raise HalfVError(f"{about.path} cannot be loaded: {log.last_words()}.")
        n_trained = llama_h.llama_model_n_ctx_train(pointer)
        if n_ctx is not None and n_ctx > n_trained:
            llama_h.llama_model_free(pointer)
            raise HalfVError(
                f"is more than the {n_trained} tokens that {about.path.name} can follow", parameter="n_ctx", value=n_ctx
            )
        options = {
            "seed": seed,
            "topup_bytes": topup_mb << 20,
            "n_ctx": n_ctx or min(DEFAULT_N_CTX, n_trained),
            "n_threads": n_threads or machine.n_cores(),
            "n_batch": n_batch,
            "n_ubatch": n_ubatch,
            "flash_attn": FLASH[flash_attn],
            "kv_type": TENSOR_TYPES[kv_type].ggml_type,
        }
        model = cls(about.path, pointer, options)
        try:
            model._set_profile(resolved)
            model.encoder = Encoder.load(
                encoder_path,
                pointer,
                about.path,
                use_gpu=n_gpu_layers != 0,
                n_threads=options["n_threads"],
                flash_attn=FLASH[flash_attn],
                image_max_tokens=image_max_tokens,
                pixel_tau=model.profile and model.profile.pixel_tau,
                cache_bytes=image_cache_mb << 20,
                weights=mmproj_type,
            )
            model._set_template(about.architecture)
            model._free = model._context()  # so that a lack of memory shows now
        except BaseException:
            model.close()
            raise
        return model

    def _set_profile(self, resolved: Resolved) -> None:
        wanted, resolved = resolved, if_supported(resolved, self.pointer, self.path)
        if resolved != wanted:
            self.notes.append("This architecture cannot be pruned, so the model runs whole.")
        self.profile, self.profile_source = resolved.profile, resolved.source
        if resolved.preset:
            self.profile_source = f"preset {resolved.preset}"
        if halfv_cpp.halfv_model_supported(self.pointer):
            halfv_cpp.set_model_profile(self.pointer, resolved.profile.to_c() if resolved.profile else None)

    def _set_template(self, architecture: str) -> None:
        source = llama_h.llama_model_chat_template(self.pointer, None)
        bos, eos = llama_h.llama_vocab_bos(self.vocab), llama_h.llama_vocab_eos(self.vocab)
        self.template = Template(
            source.decode() if source else None,
            architecture,
            llama_h.llama_vocab_get_add_bos(self.vocab),
            self.piece(bos, special=True).decode("utf-8", "replace") if bos >= 0 else "",
            self.piece(eos, special=True).decode("utf-8", "replace") if eos >= 0 else "",
        )
        if self.template.fallback:
            self.notes.append(f"The model has no chat template: {self.template.fallback} is used.")

    def _context(self) -> Context:
        if self._free:
            context, self._free = self._free, None
            return context
        options = self._options
        params = llama_h.llama_context_default_params()
        params.n_ctx = options["n_ctx"]
        params.n_batch = options["n_batch"]
        params.n_ubatch = options["n_batch"] if self.encoder.non_causal else options["n_ubatch"]
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = options["n_threads"]
        params.flash_attn_type = options["flash_attn"]
        params.type_k = params.type_v = options["kv_type"]
        log.clear()
        pointer = llama_h.llama_init_from_model(self.pointer, params)
        if not pointer:
            if log.out_of_memory():
                raise HalfVError(
                    f"There is not enough memory for a context of {options['n_ctx']} tokens",
                    hint="lower {n_ctx}, use {kv_type}, or close other chats",
                    settings={"n_ctx": None, "kv_type": "q8_0"},
                )
            raise HalfVError(f"No context can be made for {self.path.name}: {log.last_words()}.")
        halfv_cpp.halfv_set_topup_bytes(pointer, self.topup_bytes)
        return Context(pointer, self.encoder)

    def chat(self, system: str | None = None, *, mode: Literal["prepare", "exact"] = "prepare") -> Chat:
        """Open a conversation.

        mode: "prepare" chooses most of a picture's tokens as soon as it is there, so that the answer comes sooner;
        "exact" waits for the question, as published. Every open chat has a KV cache of its own: close those you leave.
        """
        if mode not in ("prepare", "exact"):
            raise HalfVError(parameter="mode", value=mode, rule="'prepare' or 'exact'")
        with self.lock:
            self._check_open()
            chat = Chat(self, self._context(), system, mode)
            self._chats.add(chat)
            return chat

    def _take_back(self, chat: Chat, context: Context) -> None:
        self._chats.discard(chat)
        if self._free:
            context.close()
        else:
            context.clear()
            self._free = context

    def tokenize(self, text: str) -> list[int]:
        """As llama.cpp does it in a prompt: special tokens by their text, none added."""
        raw = text.encode("utf-8", "surrogatepass")
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = llama_h.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, True)
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(MAX_PIECE_BYTES)
        length = llama_h.llama_token_to_piece(self.vocab, token, buffer, MAX_PIECE_BYTES, 0, special)
        return buffer.raw[: max(length, 0)]

    def _check_open(self) -> None:
        if not self.pointer:
            raise HalfVError(f"The model {self.path.name} is closed: load it again.")

    def close(self) -> None:
        """Close the chats and free everything."""
        with self.lock:
            for chat in list(self._chats):
                chat.close()
            if self._free:
                self._free.close()
                self._free = None
            if self.encoder:
                self.encoder.close()
            if self.pointer:
                llama_h.llama_model_free(self.pointer)
                self.pointer = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # one whose making failed
            self.close()


def resolve_profile(
    about: model_file.ModelFile,
    given: Profile | Mapping[str, Any] | str | os.PathLike[str] | None,
    keep: float | None,
    pixel_tau: float | Literal["off"] | None = None,
    visual_share: float | None = None,
) -> Resolved:
    """What these come to for this model, after the sidecar, the file and the presets."""
    if keep is not None and not 0 < keep <= 1:
        raise HalfVError(parameter="keep", value=keep, rule="above 0 and at most 1")
    if keep is not None and given == "off":
        raise HalfVError(
            "needs a profile, and {profile} says none",
            parameter="keep",
            value=keep,
            hint="leave one of them out",
            settings={"profile": "off"},
        )
    if pixel_tau not in (None, "off") and not 0 <= pixel_tau <= 255:
        raise HalfVError(parameter="pixel_tau", value=pixel_tau, rule="between 0 and 255")
    if visual_share is not None and not 0 <= visual_share <= 1:
        raise HalfVError(parameter="visual_share", value=visual_share, rule="between 0 and 1")
    resolved = resolve.resolve(about, _override(given, about))
    if pixel_tau is not None and resolved.source != "environment":
        base = resolved.profile or Profile.default(about.n_layer)
        tau = None if pixel_tau == "off" else pixel_tau
        if tau != base.pixel_tau:
            resolved = dataclasses.replace(resolved, profile=_changed(base, about, pixel_tau=tau))
    if visual_share is not None and resolved.profile is not None:
        changed = dataclasses.replace(resolved.profile, visual_share=visual_share).validate(about.n_layer)
        resolved = dataclasses.replace(resolved, profile=changed)
    if keep is None:
        return resolved
    if resolved.profile is None:
        if resolved.source != "environment":
            raise HalfVError(
                "needs a profile",
                parameter="keep",
                value=keep,
                hint=f"{about.path.name} has none, so give {{profile}} as well",
                settings={"profile": None},
            )
        return resolved
    return dataclasses.replace(resolved, profile=_changed(resolved.profile, about, ivr_keep=keep))


def _changed(base: Profile, about: model_file.ModelFile, **fields: float | None) -> Profile:
    """Without the evidence, which was for another profile."""
    return dataclasses.replace(base, **fields, calibration=None).validate(about.n_layer)


def if_supported(resolved: Resolved, model: int, path: Path) -> Resolved:
    """An architecture without hooks runs whole; to ask for more is a mistake."""
    if resolved.profile is None or halfv_cpp.halfv_model_supported(model):
        return resolved
    if resolved.source == "flag":
        raise HalfVError(
            f"{path.name} cannot be pruned: its architecture has no hooks",
            hint="give {profile}",
            settings={"profile": "off"},
        )
    return Resolved(None, "off")


def _override(
    given: Profile | Mapping[str, Any] | str | os.PathLike[str] | None, about: model_file.ModelFile
) -> Profile | Literal["off"] | None:
    """What profile=... means."""
    if given is None or given == "off" or isinstance(given, Profile):
        return given
    if isinstance(given, Mapping):
        return Profile.from_json({"version": profiles.VERSION, **given})
    if not isinstance(given, str) or given.endswith(".json") or os.sep in given:
        return stored.read_json(Path(given))
    preset = presets.get(given)
    if preset.architecture != about.architecture:
        raise HalfVError(
            f"The preset {preset.name} is for models of the architecture {preset.architecture}, and {about.path.name} "
            f"is {about.architecture}."
        )
    return preset.scaled(about.n_layer).profile


def check_choice(name: str, value: object, choices: Collection[Any]) -> None:
    if value not in choices:
        raise HalfVError(parameter=name, value=value, rule=f"one of {', '.join(map(str, choices))}")
