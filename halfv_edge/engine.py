"""The Python API: load a model, open a chat, ask about pictures, iterate over the answer."""

from __future__ import annotations

import codecs
import ctypes
import dataclasses
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halfv_edge import images, libs, native_log, presets
from halfv_edge import profile as profiles
from halfv_edge.encoder import Chunk, Encoded, Encoder, find_beside
from halfv_edge.errors import HalfvError
from halfv_edge.kv import Context, Item, StoppedError, n_cells
from halfv_edge.profile import Profile, Resolved
from halfv_edge.sampling import Sampler, Sampling
from halfv_edge.templates import Template
from halfv_edge.tokens import Tile, TokenMap, tile_grid

llama_cpp = libs.load()

import halfv_cpp  # noqa: E402

DEFAULT_N_CTX = 8192
KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7}
FLASH = {"auto": -1, False: 0, True: 1}
MAX_PIECE_BYTES = 4096
HALF = "\ufffd"  # what a decoder gives for half a character


@dataclass(frozen=True, slots=True)
class Stats:
    """What the last answer took. Times are seconds of wall clock."""

    ttft_sec: float = 0.0  # from ask() to the first token
    encode_sec: float = 0.0  # vision encoder, for the pictures that are new in this turn
    prefill_sec: float = 0.0  # language model up to the first token: ahead of the question too, and selection
    select_sec: float = 0.0  # of it the choice of tokens
    ahead_sec: float = 0.0  # of encoder and prefill what ran before ask(), while the person typed
    n_visual: int = 0  # visual tokens of the conversation's pictures,
    n_kept: int = 0  # of them in stage II,
    n_deep: int = 0  # and updated in stage III
    n_prompt: int = 0  # tokens evaluated before the first token of the answer
    n_encoded: int = 0  # pictures that went through the encoder
    n_generated: int = 0
    tokens_per_sec: float = 0.0  # after the first token
    flops_dense: float = 0.0  # of this turn from the first picture on: unpruned, and spent; 0 without pruning
    flops_spent: float = 0.0
    stopped: str = ""  # "end", "length", "stop" (a stop string) or "interrupted"

    @property
    def dense_prefill_sec(self) -> float:
        """An estimate of the prefill without pruning: the measured time less selection, at the same FLOPS.

        It leaves out that text before the first picture costs the same either way, and that larger batches may run
        at a better rate; the bench measures instead of estimating.
        """
        if not self.flops_spent:
            return self.prefill_sec
        return max(self.prefill_sec - self.select_sec, 0.0) * self.flops_dense / self.flops_spent


class Model:
    """A language model with its vision encoder. Make one with `Model.load`, close it or use it in a `with`.

    Any thread may use it and its chats: one lock per model lets one native call run at a time, so that two chats that
    answer at once take turns token by token. A single chat answers one question at a time.
    """

    def __init__(self, path: Path, pointer: int, options: dict[str, Any]):
        self.path = path
        self.pointer = pointer
        self.lock = threading.RLock()
        self.seed: int | None = options["seed"]
        self.topup_bytes: int = options["topup_bytes"]
        self.notes: list[str] = []  # what a person should know that is no error
        self.profile: Profile | None = None
        self.profile_source: str = "off"
        self.vocab = llama_cpp.llama_model_get_vocab(pointer)
        self.n_layer = llama_cpp.llama_model_n_layer(pointer)
        self.encoder: Encoder | None = None
        self._options = options
        self._free: Context | None = None  # of a chat that was closed
        self._chats: list[Chat] = []

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mmproj: str | os.PathLike[str] | None = None,
        *,
        profile: Profile | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        keep: float | None = None,
        n_ctx: int | None = None,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        flash_attn: Literal["auto"] | bool = "auto",
        kv_type: str = "f16",
        seed: int | None = None,
        image_max_tokens: int | None = None,
        image_cache_mb: int = 512,
        topup_mb: int = 256,
        verbose: bool = False,
    ) -> Model:
        """Load a model and its encoder.

        mmproj: the encoder's GGUF; looked for beside the model when not given. profile: a Profile, its JSON as a dict
        or a file, a preset's name or "off"; when not given what comes with the model. keep: the share of visual tokens in
        stage II, in place of the profile's. n_ctx: 8192, or what the model was trained for if that is less.
        n_gpu_layers: -1 is all. seed: of every answer that names none. image_max_tokens: per picture, where its size
        is free. image_cache_mb: encoded pictures that are remembered. topup_mb: pruned tokens that later questions can
        bring back. verbose: llama.cpp's log on stderr.
        """
        native_log.capture(verbose)
        about = profiles.Model.read(path)
        _check_options(kv_type, flash_attn, n_batch, n_ubatch, n_ctx)
        resolved = profiles.resolve(about, _override(profile))
        if keep is not None:
            if resolved.profile is None and resolved.source != "environment":
                raise HalfvError(f"keep = {keep!r} needs a profile: this model has none, so give profile=... as well.")
            if resolved.profile is not None:
                wanted = dataclasses.replace(resolved.profile, ivr_keep=keep, calibration=None).validate(about.n_layer)
                resolved = dataclasses.replace(resolved, profile=wanted)

        llama_cpp.llama_backend_init()
        native_log.clear()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        pointer = llama_cpp.llama_model_load_from_file(str(about.path).encode(), params)
        if not pointer:
            if native_log.out_of_memory():
                raise HalfvError(
                    f"There is not enough memory for {about.path}: lower n_gpu_layers, or use a smaller file."
                )
            raise HalfvError(f"{about.path} cannot be loaded: {native_log.last_words()}.")
        options = {
            "seed": seed,
            "topup_bytes": topup_mb << 20,
            "n_ctx": n_ctx or min(DEFAULT_N_CTX, llama_cpp.llama_model_n_ctx_train(pointer)),
            "n_threads": n_threads
            or max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
            "n_batch": n_batch,
            "n_ubatch": n_ubatch,
            "flash_attn": FLASH[flash_attn],
            "kv_type": KV_TYPES[kv_type],
        }
        model = cls(about.path, pointer, options)
        try:
            model._set_profile(resolved)
            found = (
                Path(mmproj) if mmproj is not None else find_beside(about.path, llama_cpp.llama_model_n_embd(pointer))
            )
            model.encoder = Encoder.load(
                found,
                pointer,
                about.path,
                use_gpu=n_gpu_layers != 0,
                n_threads=options["n_threads"],
                flash_attn=FLASH[flash_attn],
                image_max_tokens=image_max_tokens,
                cache_bytes=image_cache_mb << 20,
            )
            model._set_template(about.architecture)
            model._free = model._context()  # so that a lack of memory shows now
        except BaseException:
            model.close()
            raise
        return model

    def _set_profile(self, resolved: Resolved) -> None:
        if resolved.profile is not None and not halfv_cpp.halfv_model_supported(self.pointer):
            if resolved.source == "flag":
                raise HalfvError(
                    f"{self.path.name} cannot be pruned: its architecture has no hooks; give profile='off'."
                )
            self.notes.append("This architecture cannot be pruned, so the model runs whole.")
            resolved = Resolved(None, "off")
        self.profile, self.profile_source = resolved.profile, resolved.source
        if resolved.preset:
            self.profile_source = f"preset {resolved.preset}"
        if halfv_cpp.halfv_model_supported(self.pointer):
            halfv_cpp.set_model_profile(self.pointer, resolved.profile.to_c() if resolved.profile else None)

    def _set_template(self, architecture: str) -> None:
        source = llama_cpp.llama_model_chat_template(self.pointer, None)
        bos, eos = llama_cpp.llama_vocab_bos(self.vocab), llama_cpp.llama_vocab_eos(self.vocab)
        self.template = Template(
            source.decode() if source else None,
            architecture,
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
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = options["n_ctx"]
        params.n_batch = options["n_batch"]
        params.n_ubatch = options["n_batch"] if self.encoder.non_causal else options["n_ubatch"]
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = options["n_threads"]
        params.flash_attn_type = options["flash_attn"]
        params.type_k = params.type_v = options["kv_type"]
        native_log.clear()
        pointer = llama_cpp.llama_init_from_model(self.pointer, params)
        if not pointer:
            if native_log.out_of_memory():
                raise HalfvError(
                    f"There is not enough memory for a context of {options['n_ctx']} tokens: lower n_ctx, use "
                    "kv_type='q8_0', or close other chats."
                )
            raise HalfvError(f"No context can be made for {self.path.name}: {native_log.last_words()}.")
        halfv_cpp.halfv_set_topup_bytes(pointer, self.topup_bytes)
        return Context(pointer, self.encoder)

    def chat(self, system: str | None = None, *, mode: Literal["prepare", "exact"] = "prepare") -> Chat:
        """Open a conversation.

        mode: "prepare" chooses most of a picture's tokens as soon as it is there, so that the answer comes sooner;
        "exact" waits for the question, as published. Every open chat has a KV cache of its own: close those you leave.
        """
        if mode not in ("prepare", "exact"):
            raise HalfvError(f"mode = {mode!r} is not valid: it must be 'prepare' or 'exact'.")
        with self.lock:
            self._check_open()
            chat = Chat(self, self._context(), system, mode)
            self._chats.append(chat)
            return chat

    def _take_back(self, chat: Chat, context: Context) -> None:
        self._chats.remove(chat)
        context.stop = lambda: False
        if self._free or not self.pointer:
            context.close()
        else:
            context.clear()
            self._free = context

    def tokenize(self, text: str) -> list[int]:
        """As llama.cpp does it in a prompt: special tokens by their text, none added."""
        raw = text.encode("utf-8", "surrogatepass")
        room = len(raw) + 8
        while True:
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, True)
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(MAX_PIECE_BYTES)
        length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, MAX_PIECE_BYTES, 0, special)
        return buffer.raw[: max(length, 0)]

    def _check_open(self) -> None:
        if not self.pointer:
            raise HalfvError(f"The model {self.path.name} is closed: load it again.")

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
                llama_cpp.llama_model_free(self.pointer)
                self.pointer = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True)
class _Turn:
    """What is counted from the end of one answer to the end of the next."""

    n_evaluated: int
    decode_sec: float
    halfv: dict[str, Any]
    encode_sec: float = 0.0
    ahead_sec: float = 0.0
    n_encoded: int = 0


class Chat:
    """A conversation about pictures. Its KV cache stays, so that a later turn pays only for what is new."""

    def __init__(self, model: Model, context: Context, system: str | None, mode: str):
        self.model = model
        self.mode = mode
        self.system = system
        self.stats = Stats()
        self._context = context
        self._nonce = secrets.token_hex(6)  # so that no text can pass for a picture
        self._stop = threading.Event()
        self._answer: Answer | None = None
        context.stop = self._stop.is_set
        self._start()

    def _start(self) -> None:
        self.messages: list[dict[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        self._pictures: list[Encoded] = []
        self._waiting: list[int] = []  # pictures of the next question
        self._known = ""  # the text of which the context's items and the tail are the tokens
        self._tail: list[int] = []  # tokens that belong there and are not evaluated yet
        self._asked = False  # a question has been settled on these pictures
        self._turn = self._new_turn()

    def _new_turn(self) -> _Turn:
        return _Turn(self._context.n_evaluated, self._context.decode_sec, self._context.stats())

    #
    # what people call
    #

    def add_image(self, source: images.Source) -> None:
        """Give a picture for the next question. It is encoded and prepared now, while the person still types."""
        picture = images.load(source)
        with self.model.lock:
            self._check_idle()
            self._stop.clear()
            start = time.perf_counter()
            encoded = self.model.encoder.tokens(picture)
            self._pictures.append(encoded)
            self._waiting.append(len(self._pictures) - 1)
            try:
                split = secrets.token_hex(8)
                prompt = self._render(split).partition(split)[0]
                self._check_room(
                    prompt, f"{picture.name} has {sum(c.n_tokens for c in encoded.chunks)} visual tokens and"
                )
                self._encode(encoded)
                marks = list(self._marker_pattern().finditer(prompt))
                if marks:  # else this template puts pictures behind the text
                    self._advance(prompt[: marks[-1].end()], output=False)
                    if self.mode == "prepare":
                        self._context.prepare()
            except StoppedError:
                self._stop.clear()  # the rest is done with the question
            except BaseException:
                self._pictures.pop()
                self._waiting.pop()
                raise
            self._turn.ahead_sec += time.perf_counter() - start

    def ask(
        self,
        question: str,
        images: Iterable[images.Source] = (),
        *,
        max_tokens: int | None = None,
        temperature: float = 0.2,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        stop: str | Iterable[str] = (),
    ) -> Answer:
        """Ask, with more pictures if there are any; iterate over what comes back for the text as it is made.

        max_tokens: None is as many as fit. temperature 0 always takes the likeliest token. grammar: GBNF, or
        json_schema: the answer is JSON of that schema. stop: the answer ends before any of these.
        """
        if not isinstance(question, str):
            raise HalfvError(f"A {type(question).__name__} is not a question: give text.")
        if max_tokens is not None and max_tokens < 1:
            raise HalfvError(f"max_tokens = {max_tokens!r} is not valid: it must be at least 1.")
        settings = Sampling(
            temperature, top_k, top_p, min_p, self.model.seed if seed is None else seed, grammar, json_schema
        )
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        start = time.perf_counter()
        self._check_idle()
        for source in images:
            self.add_image(source)
        with self.model.lock:
            self._check_idle()
            self._stop.clear()
            prompt = self._render(question)
            self._check_room(prompt, "This question")
            sampler = Sampler(settings, self.model.vocab)
            self._answer = Answer(self, question, prompt, sampler, max_tokens, [s for s in stops if s], start)
            return self._answer

    def answer(self, question: str, images: Iterable[images.Source] = (), **options: Any) -> str:
        """Ask and wait for the whole answer. Options are those of ask()."""
        return "".join(self.ask(question, images, **options))

    def stop(self) -> None:
        """End the answer that is being made, from any thread. What was made stays in the conversation."""
        self._stop.set()

    def reset(self) -> None:
        """Forget the conversation and its pictures; the system message stays."""
        with self.model.lock:
            self._check_open()
            if self._answer:
                self._answer.close()
            self._context.clear()
            self._start()

    @property
    def token_maps(self) -> list[TokenMap]:
        """Which tokens of each picture were kept, in the order in which the pictures were given."""
        with self.model.lock:
            self._check_open()
            maps, index = [], 0
            held = {id(item) for item in self._context.items if isinstance(item, Chunk)}
            for encoded in self._pictures:
                tiles = []
                boxes = tile_grid(len(encoded.chunks), encoded.picture.image.size)
                for chunk, box in zip(encoded.chunks, boxes, strict=True):
                    columns, rows = chunk.grid()
                    everything = list(range(chunk.n_tokens))
                    kept = deep = None
                    if id(chunk) in held:
                        kept, deep = (self._context.image_tokens(index, stage) for stage in (2, 3))
                        index += 1
                    tiles.append(
                        Tile(
                            columns,
                            rows,
                            everything if kept is None else kept,
                            everything if deep is None else deep,
                            box,
                        )
                    )
                maps.append(TokenMap(encoded.picture.image, tiles))
            return maps

    def close(self) -> None:
        """End the conversation; its KV cache goes to the model's next chat."""
        with self.model.lock:
            if self._context is None:
                return
            if self._answer:
                self._answer.close()
            context, self._context = self._context, None
            self.model._take_back(self, context)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    #
    # from a conversation to tokens
    #

    def _check_open(self) -> None:
        if self._context is None:
            raise HalfvError("This chat is closed: open another with model.chat().")

    def _check_idle(self) -> None:
        self._check_open()
        if self._answer is not None:
            raise HalfvError("This chat is still answering: finish or close that answer first, or open another chat.")

    def _marker(self, picture: int) -> str:
        return f"<|picture-{self._nonce}-{picture}|>"

    def _marker_pattern(self) -> re.Pattern[str]:
        return re.compile(rf"<\|picture-{self._nonce}-(\d+)\|>")

    def _content(self, question: str) -> str:
        return "".join(self._marker(picture) for picture in self._waiting) + question

    def _render(self, question: str) -> str:
        return self.model.template.render([*self.messages, {"role": "user", "content": self._content(question)}])

    def _tokens(self, text: str, fresh: bool) -> list[Item]:
        """Text and pictures as items. `fresh`: the text begins the context, or follows a picture directly."""
        items: list[Item] = []
        for number, part in enumerate(self._marker_pattern().split(text)):
            if number % 2:
                items += self._pictures[int(part)].items
            elif part:
                items += self.model.tokenize(part) if fresh or number else self._continue(part)
        return items

    def _continue(self, text: str) -> list[int]:
        """Tokens of text that goes on where other text ended: without the space that SPM puts before a first word."""
        if llama_cpp.llama_vocab_type(self.model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_SPM:
            anchor, both = self.model.tokenize("\n"), self.model.tokenize("\n" + text)
            if both[: len(anchor)] == anchor:
                return both[len(anchor) :]
        return self.model.tokenize(text)

    def _plan(self, prompt: str) -> tuple[int, list[Item]]:
        """How many of the context's items stay, and what has to be evaluated after them."""
        context = self._context
        if self._known and prompt.startswith(self._known):
            fresh = not self._tail and self._known.endswith(tuple(map(self._marker, range(len(self._pictures)))))
            return len(context.items), [*self._tail, *self._tokens(prompt[len(self._known) :], fresh)]
        items = self._tokens(prompt, fresh=True)
        if llama_cpp.llama_vocab_get_add_bos(self.model.vocab):
            items.insert(0, llama_cpp.llama_vocab_bos(self.model.vocab))
        same = min(context.common(items), len(items) - 1)  # something must give logits
        return same, items[same:]

    def _check_room(self, prompt: str, what: str) -> None:
        same, new = self._plan(prompt)
        needed = n_cells(self._context.items[:same]) + n_cells(new) + 1
        if needed > self._context.n_ctx:
            raise HalfvError(
                f"{what} needs a context of {needed} tokens, but n_ctx is {self._context.n_ctx}: load the model with "
                f"n_ctx={-(-needed // 1024) * 1024 + 1024}, or start over with fewer or smaller pictures."
            )

    def _encode(self, encoded: Encoded) -> None:
        encoder = self.model.encoder
        before = encoder.n_encoded
        encoder.encode(encoded)
        self._turn.n_encoded += encoder.n_encoded - before
        self._turn.encode_sec += encoded.encode_sec
        encoded.encode_sec = 0.0

    def _pruned(self) -> dict[str, Any]:
        n_visual = sum(item.n_tokens for item in self._context.items if isinstance(item, Chunk))
        whole = dict.fromkeys(("n_visual", "n_kept", "n_deep"), n_visual)
        return whole | _pruning(self._turn.halfv, self._context.stats())

    def _advance(self, prompt: str, output: bool) -> None:
        """Make the context hold exactly this prompt."""
        same, new = self._plan(prompt)
        context = self._context
        old_items = list(context.items)
        self._known, self._tail = "", []  # until it is done
        if same < len(old_items):
            context.truncate(same)
            new = [*old_items[len(context.items) : same], *new]
        context.evaluate(new, output)
        self._known = prompt


class Answer:
    """The text of an answer, piece by piece. Close it, or call chat.stop(), to end it early."""

    def __init__(
        self,
        chat: Chat,
        question: str,
        prompt: str,
        sampler: Sampler,
        max_tokens: int | None,
        stops: list[str],
        start: float,
    ):
        self.chat = chat
        self.text = ""  # all that was given so far
        self._pieces = self._run(question, prompt, sampler, max_tokens, stops, start)
        self._sampler = sampler
        self._started = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._started = True
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here; the chat can go on."""
        self._pieces.close()
        if not self._started:
            self._release()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _release(self) -> None:
        self._started = True
        self._sampler.close()
        if self.chat._answer is self:
            self.chat._answer = None
            self.chat._stop.clear()

    def _run(
        self, question: str, prompt: str, sampler: Sampler, max_tokens: int | None, stops: list[str], start: float
    ) -> Iterator[str]:
        chat = self.chat
        context, model, turn = chat._context, chat.model, chat._turn
        generated: list[int] = []
        ending = "interrupted"
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        raw = ""  # all text made, of which self.text has been given
        first = 0.0
        prefill: dict[str, Any] = {}
        try:
            with model.lock:
                self._prefill(prompt)
            while True:
                with model.lock:
                    if generated:
                        if len(generated) == max_tokens or n_cells(context.items) + 1 > context.n_ctx:
                            ending = "length"
                            break
                        context.evaluate(generated[-1:], output=True)
                    token = sampler.sample(context.pointer)
                if not first:
                    first = time.perf_counter()
                    prefill = {
                        "ttft_sec": first - start,
                        "prefill_sec": context.decode_sec - turn.decode_sec,
                        "n_prompt": context.n_evaluated - turn.n_evaluated,
                    } | chat._pruned()
                if llama_cpp.llama_vocab_is_eog(model.vocab, token):
                    ending = "end"
                    break
                generated.append(token)
                raw += decoder.decode(model.piece(token))
                cut, safe = _find_stop(raw, stops)
                if cut is not None:
                    raw = raw[:cut]
                    ending = "stop"
                    break
                if safe > len(self.text):
                    piece = raw[len(self.text) : safe]
                    self.text = raw[:safe]
                    yield piece
            if ending != "stop":
                raw += decoder.decode(b"", final=True)
            if len(raw) > len(self.text):
                piece = raw[len(self.text) :]
                self.text = raw
                yield piece
        except StoppedError:
            pass
        finally:
            with model.lock:
                self._finish(question, prompt, raw, generated, ending, first, prefill)

    def _prefill(self, prompt: str) -> None:
        chat = self.chat
        for picture in chat._waiting:  # encoding was stopped when they were given
            chat._encode(chat._pictures[picture])
        if chat._asked:
            chat._context.top_up()
        chat._advance(prompt, output=True)
        chat._asked = True

    def _finish(
        self, question: str, prompt: str, raw: str, generated: list[int], ending: str, first: float, prefill: dict
    ) -> None:
        """Write down what happened; an answer that never began leaves the question unasked."""
        chat = self.chat
        self._release()
        if not first:
            chat._known = ""
            return
        self.text = raw
        chat.messages += [
            {"role": "user", "content": chat._content(question)},
            {"role": "assistant", "content": raw},
        ]
        chat._waiting = []
        # a text cut at a stop string or within a character is not the text of these tokens
        chat._known = "" if ending == "stop" or raw.endswith(HALF) else prompt + raw
        chat._tail = [] if ending == "end" else generated[-1:]  # was sampled, but not evaluated
        turn = chat._turn
        seconds = time.perf_counter() - first
        chat.stats = Stats(
            encode_sec=turn.encode_sec,
            ahead_sec=turn.ahead_sec,
            n_encoded=turn.n_encoded,
            n_generated=len(generated),
            tokens_per_sec=(len(generated) - 1) / seconds if len(generated) > 1 and seconds > 0 else 0.0,
            stopped=ending,
            **prefill,
        )
        chat._turn = chat._new_turn()


def _pruning(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Stats from halfv_stats before and after; {} for a context that does not prune."""
    if not after:
        return {}

    def spent(name: str) -> float:
        return max(after[name] - before.get(name, 0), 0)

    return {
        "select_sec": spent("us_select") / 1e6,
        "flops_dense": spent("flops_dense"),
        "flops_spent": spent("flops_spent"),
    } | {name: after[name] for name in ("n_visual", "n_kept", "n_deep")}


def _find_stop(text: str, stops: list[str]) -> tuple[int | None, int]:
    """Where a stop string begins, and how much of the text cannot be the beginning of one."""
    found = [place for place in map(text.find, stops) if place >= 0]
    if found:
        return min(found), min(found)
    held = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return None, len(text) - held


def _override(given: Profile | Mapping[str, Any] | str | os.PathLike[str] | None) -> Profile | Literal["off"] | None:
    """What profile=... means."""
    if given is None or given == "off" or isinstance(given, Profile):
        return given
    if isinstance(given, Mapping):
        return Profile.from_json(given)
    if isinstance(given, str) and not given.endswith(".json") and os.sep not in given:
        return presets.get(given).profile
    return profiles.read_json(Path(given))


def _check_options(kv_type: str, flash_attn: object, n_batch: int, n_ubatch: int, n_ctx: int | None) -> None:
    if kv_type not in KV_TYPES:
        raise HalfvError(f"kv_type = {kv_type!r} is not valid: those are {', '.join(KV_TYPES)}.")
    if flash_attn not in FLASH:
        raise HalfvError(f"flash_attn = {flash_attn!r} is not valid: it must be 'auto', True or False.")
    for name, value in (("n_batch", n_batch), ("n_ubatch", n_ubatch), ("n_ctx", n_ctx)):
        if value is not None and value < 1:
            raise HalfvError(f"{name} = {value!r} is not valid: it must be at least 1.")
