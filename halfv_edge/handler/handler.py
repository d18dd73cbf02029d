"""HalfV for programs written for llama-cpp-python: a chat handler for llama_cpp.Llama(chat_handler=...).

Templates, tools, grammars and sampling are llama_cpp's own code; what it does with pictures and the KV cache is not.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import re
import threading
import time
import urllib.parse
import urllib.request
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h, log

from halfv_edge.engine import encoder, images, model_profile, stats
from halfv_edge.engine import options as engine_options
from halfv_edge.engine import runtime as engine_runtime
from halfv_edge.engine.context import SEQ, Context, Item
from halfv_edge.engine.encoder import Chunk, Encoded, Encoder
from halfv_edge.engine.stats import Stats
from halfv_edge.errors import HalfVError
from halfv_edge.handler import upstream
from halfv_edge.handler.prompt import StandIn, formatter, mark_pictures
from halfv_edge.hub.fetch import fetch, is_url
from halfv_edge.profile import model_file
from halfv_edge.profile.profile import WHOLE_INTAKE, Profile

if TYPE_CHECKING:
    import llama_cpp
else:
    llama_cpp = upstream.load()

from llama_cpp import _internals
from llama_cpp.llama_chat_format import MTMDChatHandler

__all__ = ["ChatError", "HalfVChatHandler"]


class ChatError(HalfVError, ValueError):
    """A HalfVError that programs written for llama_cpp's handlers catch too."""


class HalfVChatHandler:
    """Chat about pictures through llama_cpp.Llama: pruned, and without paying again for what the KV cache holds.

    One handler belongs to one Llama. Threads may share the two through create_chat_completion: calls wait for each
    other, and a stream that is not at its end when the next call comes cannot go on.
    """

    def __init__(
        self,
        clip_model_path: str,
        verbose: bool = True,
        use_gpu: bool = True,
        *,
        like: type = MTMDChatHandler,
        profile: Profile | Mapping[str, Any] | str | Path | None = None,
        keep: float | None = None,
        pixel_tau: float | Literal["off"] | None = None,
        input_keep: float | None = None,
        encoder_layer: int | None = None,
        encoder_keep: float | None = None,
        input_merge: float | None = None,
        image_loss: float | None = None,
        frames_tau: float | Literal["off"] | None = None,
        visual_share: float | None = None,
        mmproj_type: str = "auto",
        image_max_tokens: int | None = None,
        image_cache_mb: int = 512,
        undo_mb: int = 512,
    ):
        """Take the place of a handler of llama_cpp.

        like: the handler whose prompt format is used; by default that is the chat template in the GGUF.
        profile, keep, pixel_tau, input_keep, encoder_layer, encoder_keep, input_merge, image_loss, frames_tau,
        mmproj_type, image_max_tokens, image_cache_mb, undo_mb: as in halfv_edge.engine.options.ModelOptions.
        visual_share too, but None is the profile's own.
        """
        self.stats = Stats()  # of the last request
        self.profile: Profile | None = None  # in force, from the first request on
        self.profile_source = "off"
        self.clip_model_path = clip_model_path
        self._format = formatter(like)(clip_model_path, verbose)
        self._use_gpu = use_gpu
        self._wanted = engine_options.Pruning(
            profile=profile,
            keep=keep,
            pixel_tau=pixel_tau,
            input_keep=input_keep,
            encoder_layer=encoder_layer,
            encoder_keep=encoder_keep,
            input_merge=input_merge,
            image_loss=image_loss,
            frames_tau=frames_tau,
            visual_share=visual_share,
        )
        engine_options.check_choice("mmproj_type", mmproj_type, encoder.MMPROJ_TYPES)
        self._mmproj_type = mmproj_type
        self._image_max_tokens = image_max_tokens
        self._cache_bytes = image_cache_mb << 20
        self._undo_bytes = undo_mb << 20
        self._session: _Session | None = None
        self._lock = threading.RLock()
        self._number = 0  # of the last request

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None, **options: Any) -> HalfVChatHandler:
        """Take the encoder from a Hugging Face repository, as llama_cpp's own handlers do.

        Args:
            repo_id: "owner/repo".
            filename: The mmproj's name there, or a pattern that it alone matches.
            options: Those of upstream's from_pretrained, and of this class.

        Returns:
            A handler with the downloaded encoder.
        """
        made: HalfVChatHandler = MTMDChatHandler.from_pretrained.__func__(cls, repo_id, filename, **options)
        return made

    def load_image(self, image_url: str) -> images.Source:
        """What an image_url stands for. Override it to get pictures in your own way.

        Args:
            image_url: A http:, https:, data: or file: URL.

        Returns:
            A picture in any form that `Chat.add_image` takes.
        """
        scheme = image_url.partition(":")[0].lower()
        if scheme == "file":
            return Path(urllib.request.url2pathname(urllib.parse.urlsplit(image_url).path))
        if is_url(image_url):
            return images.load(fetch(image_url), image_url)
        if scheme != "data":
            raise HalfVError(f"image_url = {image_url[:80]!r} is not a URL: give http:, https:, data: or file:.")
        return image_url

    def __call__(self, *, llama: llama_cpp.Llama, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        start = time.perf_counter()
        with self._lock:
            self._number += 1
            try:
                session = self._attach(llama)
                messages, urls = mark_pictures(messages)

                def complete(**sampling: Any) -> Any:
                    return self._complete(session, llama, urls, start, **sampling)

                answer = self._format(llama=StandIn(llama, complete), messages=messages, **options)
            except HalfVError as error:
                raise ChatError(str(error)) from error
            if options.get("stream"):
                return self._stream(answer, llama, self._number)
            seconds = time.perf_counter() - start - self.stats.ttft_sec
            self._count_answer(llama, answer["choices"][0]["finish_reason"], seconds)
            return answer

    def _stream(self, chunks: Iterator[Any], llama: llama_cpp.Llama, number: int) -> Iterator[Any]:
        reason, seconds = None, 0.0
        try:
            while True:
                with self._lock:
                    if self._number != number:
                        raise ChatError("This stream cannot go on: its handler has had another request since it began.")
                    start = time.perf_counter()
                    chunk = next(chunks, None)
                    seconds += time.perf_counter() - start
                if chunk is None:
                    return
                reason = chunk["choices"][0]["finish_reason"]
                yield chunk
        finally:
            with self._lock:
                if self._number == number:
                    self._count_answer(llama, reason, seconds)

    #
    # the Llama
    #

    def _attach(self, llama: llama_cpp.Llama) -> _Session:
        """What belongs to this Llama, made at the first request: a Llama is made after its handler."""
        if self._session is not None and self._session.is_open:
            if self._session.llama() is not llama:
                raise HalfVError("This handler belongs to another Llama: make one for each.")
            return self._session
        log.capture()
        showing = log.Showing() if llama.verbose else None
        about = model_file.ModelFile.read(llama.model_path)
        wanted = model_profile.resolve_profile(about, self._wanted)
        resolved = model_profile.if_supported(wanted, llama.model, about.path)
        _set_profile(llama, resolved.profile)  # before the encoder, which asks the model for it
        flash_attn = llama.context_params.flash_attn_type == llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED
        vision = Encoder.load(
            encoder.find_mmproj(self.clip_model_path, about),
            llama.model,
            about.path,
            use_gpu=self._use_gpu,
            n_threads=llama.n_threads,
            # a Llama has none unless it is told to, and an encoder takes several times as long without
            flash_attn=int(flash_attn) if self._mmproj_type == "off" else engine_options.FLASH["auto"],
            image_max_tokens=self._image_max_tokens,
            intake=resolved.profile.intake if resolved.profile else WHOLE_INTAKE,
            weights=self._mmproj_type,
            cache_bytes=self._cache_bytes,
        )
        self.profile = resolved.profile
        self.profile_source = f"preset {resolved.preset}" if resolved.preset else resolved.source
        engine_runtime.set_undo(llama.ctx, self._undo_bytes)
        self._session = _Session(llama, vision, showing)
        return self._session

    #
    # a request
    #

    def _complete(
        self, session: _Session, llama: llama_cpp.Llama, urls: list[dict[str, str]], start: float, **sampling: Any
    ) -> Any:
        """Evaluate the prompt that the format has taken down, and let the Llama answer."""
        context = session.context
        n_evaluated, decode_sec, counted = context.n_evaluated, context.decode_sec, context.stats()
        names, pictures, fresh = self._pictures(session, urls)
        parts = _parts(llama, self._format.prompt, pictures)
        context.check_room(list(itertools.chain(*parts)), "This conversation")
        encode_sec = [session.encoder.encode(encoded) or 0.0 for encoded in fresh]
        session.remember({names[mark]: picture for mark, picture in pictures.items()})
        session.evaluate(llama, list(itertools.chain(*parts)))
        self.stats = Stats(
            ttft_sec=time.perf_counter() - start,
            encode_sec=sum(encode_sec),
            prefill_sec=context.decode_sec - decode_sec,
            n_prompt=context.n_evaluated - n_evaluated,
            n_encoded=len(encode_sec),
            **_pruning(context, counted),
        )
        # pictures with M-RoPE fill more cells than positions, and positions are what llama_cpp counts
        room = context.n_left
        wanted = sampling.pop("max_tokens", None) or 0
        sampling |= {"prompt": context.ids().tolist(), "max_tokens": min(wanted, room) if wanted > 0 else room}
        return llama.create_completion(**sampling)

    def _pictures(
        self, session: _Session, messages: list[dict[str, str]]
    ) -> tuple[dict[str, _Urls], dict[str, _Seen], list[Encoded]]:
        """By mark; and those that are to be encoded. What a data: URI is of the last request is known by its text, and
        that of those before it in its message where these matter."""
        names: dict[str, _Urls] = {}
        found: dict[str, _Seen] = {}
        fresh: dict[str, Encoded] = {}
        for urls in messages:
            frames = session.encoder.frames()
            so_far = list(urls.values())
            own = {mark: tuple(so_far[: i + 1] if frames else [url]) for i, (mark, url) in enumerate(urls.items())}
            names |= own
            if frames and all(name in session.by_url for name in own.values()):
                frames = None
            for mark, url in urls.items():
                if frames or own[mark] not in session.by_url:
                    encoded = session.encoder.tokens(images.load(self.load_image(url)), frames)
                    items = session.by_digest.get(encoded.digest)
                    if items is None:
                        items = fresh.setdefault(encoded.digest, encoded).items
                    found[mark] = (encoded.digest, items)
                else:
                    found[mark] = session.by_url[own[mark]]
        new = [encoded for encoded in fresh.values() if any(chunk.embd is None for chunk in encoded.chunks)]
        return names, found, new

    def _count_answer(self, llama: llama_cpp.Llama, reason: str | None, seconds: float) -> None:
        assert self._session is not None  # it has just answered
        n_evaluated = llama.n_tokens - self._session.context.n_positions
        self.stats = dataclasses.replace(
            self.stats,
            n_generated=n_evaluated + (reason == "length"),  # the last one was not evaluated
            tokens_per_sec=n_evaluated / seconds if seconds else 0.0,
            stopped={"length": "length", None: "interrupted"}.get(reason, "end"),
        )


_Seen = tuple[str, list[Item]]  # a picture's digest, and its tokens and chunks
_Urls = tuple[str, ...]  # a picture's, behind those of the ones that it is compared with


class _Session:
    """What a handler has with one Llama."""

    def __init__(self, llama: llama_cpp.Llama, vision: Encoder, showing: log.Showing | None):
        self.llama = weakref.ref(llama)
        self.encoder = vision
        self._showing = showing  # llama.cpp's log
        self.context = _SharedContext(llama, vision)
        self.by_url: dict[_Urls, _Seen] = {}  # pictures of the last request
        self.by_digest: dict[str, list[Item]] = {}
        self.is_open = True
        llama._stack.callback(self.close)  # runs before the model and the context go

    def close(self) -> None:
        self.is_open = False
        self.by_url, self.by_digest = {}, {}
        if self._showing:
            self._showing.close()
        self.encoder.close()

    def remember(self, pictures: Mapping[_Urls, _Seen]) -> None:
        """The pictures of this request by their URLs. Others may be in the encoder's cache."""
        self.by_url = {urls: seen for urls, seen in pictures.items() if all(url[:5].lower() == "data:" for url in urls)}
        self.by_digest = dict(pictures.values())
        for digest, items in self.by_digest.items():
            self.context.name_chunks(digest, [item for item in items if isinstance(item, Chunk)])

    def evaluate(self, llama: llama_cpp.Llama, items: list[Item]) -> None:
        """Make the context hold the prompt, from what it has in common with it."""
        context, ready = self.context, False
        context.catch_up(llama)
        try:
            shared = context.common(items)
            context.truncate(min(shared, len(items) - 1))  # something must give logits
            context.top_up()  # of pictures that earlier questions have settled, if there are any
            context.evaluate(items[len(context.items) :], output=True)
            ready = True
        finally:
            context.hand_over(llama, ready)


class _SharedContext(Context):
    """The context of a Llama, which evaluates its answers itself and knows tokens by their position.

    In the positions of a picture the Llama is given tokens that follow from its content, so that another picture is
    another text to it, and to states that it saves.
    """

    def __init__(self, llama: llama_cpp.Llama, vision: Encoder):
        super().__init__(llama.ctx, vision)
        self._n_vocab = llama.n_vocab()
        self._names: weakref.WeakKeyDictionary[Chunk, list[int]] = weakref.WeakKeyDictionary()

    @property
    def n_positions(self) -> int:
        return self._next

    def name_chunks(self, digest: str, chunks: Sequence[Chunk]) -> None:
        for number, chunk in enumerate(chunks):
            if chunk not in self._names:
                rng = np.random.default_rng((int(digest[:16], 16), number))
                self._names[chunk] = rng.integers(0, self._n_vocab, chunk.n_pos).tolist()

    def ids(self) -> np.ndarray:
        """What the Llama is to know: a token for every position."""
        out: list[int] = []
        for item in self.items:
            out += self._names[item] if isinstance(item, Chunk) else (item,)
        return np.array(out, np.intc)

    def catch_up(self, llama: llama_cpp.Llama) -> None:
        """List what the Llama has evaluated since, and forget what it no longer holds."""
        held, mine = llama.input_ids[: llama.n_tokens], self.ids()
        length = min(len(held), len(mine))
        same = int(np.argmin(np.append(held[:length] == mine[:length], False)))
        if same == len(mine):
            tokens = held[same:].tolist()
            self._starts += range(same, same + len(tokens))
            self.items += tokens
            self._next += len(tokens)
            self.n_cells += len(tokens)
        else:
            ends = [*self._starts[1:], self._next]
            self.truncate(sum(end <= same for end in ends))
        llama_h.llama_memory_seq_rm(self.memory, SEQ, self._next, -1)

    def hand_over(self, llama: llama_cpp.Llama, ready: bool) -> None:
        """Tell the Llama what it holds; `ready`: with logits for the next token."""
        ids = self.ids()
        llama.n_tokens = len(ids)
        llama.input_ids[: len(ids)] = ids
        llama._requires_eval = not ready
        if ready and llama._logits_all and len(ids) <= len(llama.scores):
            logits = llama_h.llama_get_logits_ith(self.pointer, -1)
            llama.scores[len(ids) - 1] = np.ctypeslib.as_array(logits, shape=(self._n_vocab,))


def _parts(llama: llama_cpp.Llama, text: str, pictures: Mapping[str, _Seen]) -> list[list[Item]]:
    """The prompt as mtmd tokenizes it. A picture's part is its own list, which changes when it is encoded."""
    vocab = llama._model.vocab
    parts: list[list[Item]] = []
    if llama_h.llama_vocab_get_add_bos(vocab):
        parts.append([llama_h.llama_vocab_bos(vocab)])
    missing = set(pictures)
    for part in re.split(f"({'|'.join(map(re.escape, pictures))})", text) if pictures else [text]:
        if part in pictures:
            parts.append(pictures[part][1])
            missing.discard(part)
        elif part:
            parts.append(llama._model.tokenize(part.encode(), add_bos=False, special=True))
    if llama_h.llama_vocab_get_add_eos(vocab):
        parts.append([llama_h.llama_vocab_eos(vocab)])
    if missing:
        raise HalfVError(
            f"The prompt format leaves out {len(missing)} of {len(pictures)} pictures: give them in user messages."
        )
    if not any(parts):
        raise HalfVError("The prompt is empty: give a message.")
    return parts


def _pruning(context: Context, before: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Stats from halfv_stats before and now."""
    counts = stats.visual_counts(context.items)
    return counts | stats.pruning_between(before, context.stats())


def _set_profile(llama: llama_cpp.Llama, wanted: Profile | None) -> None:
    """Have the Llama's context prune by this profile. A context keeps the profile it was made with, so that it may have
    to be made again."""
    if not halfv_cpp.halfv_model_supported(llama.model):
        halfv_cpp.set_model_profile(llama.model, wanted.to_c() if wanted else None)
        return
    in_force = halfv_cpp.halfv_profile()
    has_one = halfv_cpp.halfv_get_profile(llama.ctx, in_force) == halfv_cpp.HALFV_OK
    if (wanted and dataclasses.replace(wanted, calibration=None)) == (Profile.from_c(in_force) if has_one else None):
        return
    former = halfv_cpp.model_profile(llama.model)
    llama.reset()
    llama._ctx.close()
    try:
        halfv_cpp.set_model_profile(llama.model, wanted.to_c() if wanted else None)
        _make_context(llama)
    except (ValueError, RuntimeError) as error:
        halfv_cpp.set_model_profile(llama.model, former)
        _make_context(llama)
        raise HalfVError(f"No context can be made with this profile: {log.last_words()}.") from error


def _make_context(llama: llama_cpp.Llama) -> None:
    log.clear()
    llama._ctx = _internals.LlamaContext(model=llama._model, params=llama.context_params, verbose=llama.verbose)
    llama._stack.callback(llama._ctx.close)
    if llama._lora_adapter is not None:
        adapters = (ctypes.c_void_p * 1)(ctypes.cast(llama._lora_adapter, ctypes.c_void_p))
        scales = (ctypes.c_float * 1)(llama.lora_scale)
        llama_h.llama_set_adapters_lora(llama.ctx, adapters, 1, scales)
