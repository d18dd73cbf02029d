"""A loaded model and what everything that runs it needs: contexts, prompts, FLOPs, logits."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import os
import secrets
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h, log, machine

from halfv_edge.engine import libraries
from halfv_edge.engine.context import Context, Item
from halfv_edge.engine.encoder import Encoded, Encoder, find_mmproj
from halfv_edge.engine.images import Picture
from halfv_edge.engine.loading import flops_of, load_weights, make_context
from halfv_edge.engine.model_profile import if_supported, resolve_profile
from halfv_edge.engine.options import FIRST_VISUAL_SHARE, FLASH, AnswerOptions, ModelOptions
from halfv_edge.engine.template import Template
from halfv_edge.engine.turn_lock import TurnLock
from halfv_edge.engine.twig import Twig
from halfv_edge.errors import HalfVError
from halfv_edge.profile import model_file
from halfv_edge.profile.profile import WHOLE_INTAKE, Intake, Profile
from halfv_edge.profile.resolve import Resolved

DEFAULT_N_CTX = 8192
MAX_PIECE_BYTES = 4096
MARK = f"<|picture-{secrets.token_hex(6)}|>"  # stands for the picture while a template is rendered

_open: weakref.WeakSet[Runtime] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before llama.cpp's own static objects go, and before its log has nowhere to go."""
    for runtime in list(_open):
        runtime.close()


class Closable(Protocol):
    """What holds a context of a model."""

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """One question about one picture, as the model's chat template has it."""

    head: list[Item]  # up to the picture's end
    tail: list[Item]  # from there to where the answer starts
    encoded: Encoded
    encode_sec: float | None  # None when the picture was remembered

    @property
    def items(self) -> list[Item]:
        return [*self.head, *self.tail]


class Runtime:
    """A language model with its vision encoder, held by Model and its chats, by the calibrator and by the evaluator.

    `lock` guards the native calls of all its contexts: whoever computes holds it. The encoder has a lock of its own,
    which nobody takes while holding this one.
    """

    def __init__(
        self, about: model_file.ModelFile, pointer: int, options: ModelOptions, resolved: Resolved, mmproj: Path
    ):
        self.path = about.path
        self.pointer = pointer  # 0 when it is closed
        self.options = options
        self.lock = TurnLock()
        self.notes: list[str] = []  # what a person should know that is no error
        self.vocab = llama_h.llama_model_get_vocab(pointer)
        self.n_layer: int = llama_h.llama_model_n_layer(pointer)
        self.n_embd: int = llama_h.llama_model_n_embd(pointer)
        self.n_vocab: int = llama_h.llama_vocab_n_tokens(self.vocab)
        n_trained = llama_h.llama_model_n_ctx_train(pointer)
        if options.n_ctx is not None and options.n_ctx > n_trained:
            raise HalfVError(
                f"is more than the {n_trained} tokens that {self.path.name} can follow",
                parameter="n_ctx",
                value=options.n_ctx,
            )
        self.n_ctx: int = options.n_ctx or min(DEFAULT_N_CTX, n_trained)
        self.n_threads: int = options.n_threads or machine.n_cores()
        self._is_closing = False
        self._showing: log.Showing | None = None
        self._spare: Context | None = None  # of a chat that was closed
        self.draft: Twig | None = None  # which drafts answers
        self.chats: weakref.WeakSet[Closable] = weakref.WeakSet()  # closed before the model is freed

        wanted, resolved = resolved, if_supported(resolved, pointer, self.path)
        if wanted.profile != resolved.profile and wanted.profile and wanted.profile.prunes(self.n_layer):
            self.notes.append("This architecture cannot be pruned, so the model runs whole.")
        self.profile: Profile | None = resolved.profile
        self.profile_source: str = f"preset {resolved.preset}" if resolved.preset else resolved.source
        self._set_profile(self.profile)
        self.template = self._template(about.architecture)
        self.encoder = self.load_encoder(
            mmproj,
            image_max_tokens=options.image_max_tokens,
            intake=self.profile.intake if self.profile else WHOLE_INTAKE,
            weights=options.mmproj_type,
        )
        try:
            self._spare = self.context()  # so that a lack of memory shows now
        except BaseException:
            self.encoder.close()
            raise
        _open.add(self)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], mmproj: str | os.PathLike[str] | None, options: ModelOptions
    ) -> Runtime:
        """From the GGUFs; without `mmproj` the encoder is looked for beside the model."""
        libraries.load()
        log.capture()
        showing = log.Showing() if options.verbose else None
        about = model_file.ModelFile.read(path)
        encoder_path = find_mmproj(mmproj, about)
        resolved = resolve_profile(about, options)
        # of matrices that a processor packs for itself no part can be taken
        repack = options.repack and not (resolved.profile and resolved.profile.takes_parts)
        pointer = load_weights(about.path, options, repack)
        try:
            loaded = cls(about, pointer, options, resolved, encoder_path)
        except BaseException:
            llama_h.llama_model_free(pointer)
            raise
        loaded._showing = showing
        if options.draft is not None:
            try:
                loaded.draft = Twig(options.draft, about, pointer, options, loaded.n_threads)
            except BaseException:
                loaded.close()
                raise
        return loaded

    def close(self) -> None:
        """Close the chats and free everything; contexts that others hold must be closed before."""
        with self.lock:
            self._is_closing = True  # from here on there are no new chats
            chats = list(self.chats)
        for chat in chats:  # without the lock, which they take after their own
            chat.close()
        self.encoder.close()
        with self.lock:
            if self._spare:
                self._spare.close()
                self._spare = None
            if self.draft:
                self.draft.close()
                self.draft = None
            if self.pointer:
                llama_h.llama_model_free(self.pointer)
                self.pointer = 0
            if self._showing:
                self._showing.close()

    def __del__(self) -> None:
        if hasattr(self, "encoder") and self in _open:  # else its making failed, and its maker cleans up
            self.close()

    def check_open(self) -> None:
        if self._is_closing:
            raise HalfVError(f"The model {self.path.name} is closed: load it again.")

    #
    # contexts and encoders
    #

    def context(
        self,
        profile: Profile | Literal["own"] | None = "own",
        n_ctx: int | None = None,
        *,
        undo_bytes: int | None = None,
        encoder: Encoder | None = None,
        n_seq: int = 1,
        watch: Any = None,
        flash_attn: Literal["auto"] | bool | None = None,
    ) -> Context:
        """An empty context. One that is like the model's own may be one that was taken back.

        Args:
            profile: In place of the model's; None prunes nothing.
            n_ctx: Tokens, in place of the model's.
            undo_bytes: For undoing removed questions, in place of the model's; 0: they are not undone.
            encoder: Whose pictures it will hold, in place of the model's.
            n_seq: Sequences, each with room for n_ctx tokens.
            watch: A ggml_backend_sched_eval_callback, which has to live as long as the context.
            flash_attn: In place of the model's.
        """
        with self.lock:
            return self._make_context(profile, n_ctx, undo_bytes, encoder, n_seq, watch, flash_attn)

    def _make_context(
        self,
        profile: Profile | Literal["own"] | None,
        n_ctx: int | None,
        undo_bytes: int | None,
        encoder: Encoder | None,
        n_seq: int,
        watch: Any,
        flash_attn: Literal["auto"] | bool | None,
    ) -> Context:
        is_own = profile == "own" and n_ctx in (None, self.n_ctx) and undo_bytes is None and encoder is None
        is_own = is_own and n_seq == 1 and watch is None and flash_attn is None
        if self._spare:
            spare, self._spare = self._spare, None
            if is_own:
                return spare
            spare.close()  # who measures needs the memory
        encoder = encoder or self.encoder
        n_ctx = n_ctx or self.n_ctx
        wanted = self.profile if profile == "own" else profile
        undo_bytes = self.options.undo_mb << 20 if undo_bytes is None else undo_bytes

        def make(profile: Profile | None) -> int:
            pointer = self._make_pointer(profile, n_ctx, encoder, n_seq, watch, flash_attn)
            set_undo(pointer, undo_bytes)
            return pointer

        may_grow = profile == "own" and n_seq == 1 and self.options.visual_share is None
        if may_grow and wanted and wanted.visual_share == 0:
            small = dataclasses.replace(wanted, visual_share=FIRST_VISUAL_SHARE)
            context = Context(make(small), encoder, roomier=lambda: make(wanted))
        else:
            context = Context(make(wanted), encoder, n_seq=n_seq)
        context.is_own = is_own
        return context

    def _make_pointer(
        self, profile: Profile | None, n_ctx: int, encoder: Encoder, n_seq: int, watch: Any,
        flash_attn: Literal["auto"] | bool | None,
    ) -> int:  # fmt: skip
        options = self.options if flash_attn is None else dataclasses.replace(self.options, flash_attn=flash_attn)
        with self._in_force(profile):
            return make_context(self.pointer, self.path, options, encoder, self.n_threads, n_ctx, n_seq, watch)

    def take_back(self, context: Context) -> None:
        """A context that is not needed any more; one is kept for the next."""
        with self.lock:
            if self._spare or not context.is_own or not self.pointer:
                context.close()
            else:
                context.clear()
                context.request_stop(False)
                self._spare = context

    def load_encoder(
        self,
        path: Path | None = None,
        *,
        image_max_tokens: int | None,
        intake: Intake,
        weights: str,
        on_tensor: Any = None,
    ) -> Encoder:
        """The model's encoder again, with other settings; whoever asked for it closes it. on_tensor: as Encoder.load
        takes it, and on the CPU, where it can look at what it is shown."""
        base = self.profile or Profile.default(self.n_layer)
        with self._in_force(intake.within(base)):
            return Encoder.load(
                path or self.encoder.path,
                self.pointer,
                self.path,
                use_gpu=self.options.n_gpu_layers != 0 and on_tensor is None,
                n_threads=self.n_threads,
                flash_attn=FLASH[self.options.flash_attn],
                image_max_tokens=image_max_tokens,
                intake=intake,
                on_tensor=on_tensor,
                cache_bytes=self.options.image_cache_mb << 20,
                weights=weights,
            )

    @contextlib.contextmanager
    def _in_force(self, profile: Profile | None) -> Iterator[None]:
        """Of contexts and encoders made in here: they keep it."""
        self._set_profile(profile)
        try:
            yield
        finally:
            self._set_profile(self.profile)

    def _set_profile(self, profile: Profile | None) -> None:
        if profile and not halfv_cpp.halfv_model_supported(self.pointer):
            profile = profile.encoder_part(self.n_layer)
        halfv_cpp.set_model_profile(self.pointer, profile.to_c() if profile else None)

    #
    # text
    #

    def _template(self, architecture: str) -> Template:
        source = llama_h.llama_model_chat_template(self.pointer, None)
        bos, eos = llama_h.llama_vocab_bos(self.vocab), llama_h.llama_vocab_eos(self.vocab)
        template = Template(
            source.decode() if source else None,
            architecture,
            llama_h.llama_vocab_get_add_bos(self.vocab),
            self.piece(bos, special=True).decode("utf-8", "replace") if bos >= 0 else "",
            self.piece(eos, special=True).decode("utf-8", "replace") if eos >= 0 else "",
        )
        if template.fallback:
            self.notes.append(f"The model has no chat template: {template.fallback} is used.")
        return template

    @property
    def bos(self) -> list[int]:
        """What every prompt begins with."""
        return [llama_h.llama_vocab_bos(self.vocab)] if llama_h.llama_vocab_get_add_bos(self.vocab) else []

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return bool(llama_h.llama_vocab_is_eog(self.vocab, token))

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

    def prompt(self, picture: Picture, question: str, encoder: Encoder | None = None) -> Prompt:
        """One question about one picture, encoded, as the model's chat template has it."""
        encoder = encoder or self.encoder
        before, mark, after = self.template.render([{"role": "user", "content": MARK + question}]).partition(MARK)
        if not mark:
            raise HalfVError("The model's chat template drops the picture, so nothing can be asked about it.")
        encoded = encoder.tokens(picture)
        seconds = encoder.encode(encoded)
        head = [*self.bos, *(self.tokenize(before) if before else []), *encoded.items]
        tail: list[Item] = list(self.tokenize(after))
        if not tail:
            raise HalfVError("The chat template ends with the picture, so there is nothing to answer to.")
        return Prompt(head, tail, encoded, seconds)

    def seeded(self, options: AnswerOptions) -> AnswerOptions:
        """With the model's seed when they have none."""
        return dataclasses.replace(options, seed=self.options.seed) if options.seed is None else options

    #
    # numbers
    #

    def flops(self, profile: Profile | None, n_before: int, n_visual: int, n_after: int) -> tuple[float, float]:
        """Of the language model, from the picture on: unpruned, and with this profile."""
        return flops_of(self.pointer, profile or Profile.default(self.n_layer), n_before, n_visual, n_after)

    def logits(self, context: Context, row: int = -1) -> np.ndarray:
        """A copy of those at an output of the last batch."""
        pointer = llama_h.llama_get_logits_ith(context.pointer, row)
        values: np.ndarray = np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()
        return values


def set_undo(context: int, undo_bytes: int) -> None:
    """What a llama_context may take to undo removed questions; with 0 they stay, and nothing limits pruning."""
    halfv_cpp.halfv_set_undo_bytes(context, undo_bytes)
    halfv_cpp.halfv_set_undo(context, undo_bytes > 0)
