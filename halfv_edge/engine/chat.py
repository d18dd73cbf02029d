"""A conversation: from messages and pictures to tokens, and back to text, with the least to compute."""

from __future__ import annotations

import codecs
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from halfv_cpp import llama_h

from halfv_edge.engine.context import Context, Item, StoppedError, common, n_cells
from halfv_edge.engine.encoder import Chunk, Encoded
from halfv_edge.engine.images import Picture, Source, load_all
from halfv_edge.engine.runtime import Runtime
from halfv_edge.engine.sampling import AnswerOptions, Sampler
from halfv_edge.engine.stats import Stats, pruning_between, visual_counts
from halfv_edge.engine.tokens import TokenMap
from halfv_edge.errors import HalfVError

HALF = "\ufffd"  # what a decoder gives for half a character


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A beginning of the conversation whose tokens are the context's first ones, and those of the tail after them."""

    text: str
    count: int
    tail: tuple[int, ...] = ()  # belong there, and are not evaluated yet


@dataclass(slots=True)
class _Turn:
    """What is counted from the end of one answer to the end of the next."""

    n_evaluated: int
    decode_sec: float
    halfv: dict[str, Any]
    encode_sec: float = 0.0
    ahead_sec: float = 0.0
    n_encoded: int = 0


@dataclass(slots=True)
class _Request:
    """A question that is being answered."""

    content: str  # with the markers of its pictures
    prompt: str
    n_pictures: int  # that came with it
    sampler: Sampler
    max_tokens: int | None
    stops: list[str]
    start: float
    first: float = 0.0  # when the first token was there
    raw: str = ""  # all text made,
    text: str = ""  # and what was given of it
    generated: list[int] = field(default_factory=list)
    generate_sec: float = 0.0
    stopped: str = "interrupted"
    counts: dict[str, Any] = field(default_factory=dict)  # fields of Stats, as of the first token


class Answer:
    """The text of an answer, piece by piece. Close it, or call chat.stop(), to end it early."""

    def __init__(self, chat: Chat, request: _Request):
        self.chat = chat
        self._request = request
        self._pieces = chat._generate(request)

    @property
    def text(self) -> str:
        """All that was given so far."""
        return self._request.text

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here; the chat can go on."""
        try:
            self._pieces.close()
        except ValueError:  # another thread is in it
            self.chat.stop()
            return
        self.chat._leave(self._request)  # a generator that was never started has no end either

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Chat:
    """A conversation about pictures. Its KV cache stays, so that a later turn pays only for what is new."""

    def __init__(self, runtime: Runtime, context: Context, system: str | None, mode: str):
        self.runtime = runtime
        self.encoder = context.encoder
        runtime.chats.add(self)
        self.mode = mode
        self.system = system
        self.stats = Stats()
        self._context: Context | None = context
        self._nonce = secrets.token_hex(6)  # so that no text can pass for a picture
        self._marks = re.compile(rf"<\|picture-{self._nonce}-(\d+)\|>")
        self._start()

    def _start(self) -> None:
        self.messages: list[dict[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        self._request: _Request | None = None
        self._pictures: dict[int, Encoded] = {}
        self._n_given = 0  # a number is not used twice, so that a marker always means the same picture
        self._waiting: list[int] = []  # pictures of the next question
        bos = tuple(self.runtime.bos)
        self._checkpoints = [_Checkpoint("", 0, bos)]
        self._asked = False  # a question has been settled on the pictures
        self._turn = self._new_turn()

    def _new_turn(self) -> _Turn:
        return _Turn(self._context.n_evaluated, self._context.decode_sec, self._context.stats())

    #
    # what people call
    #

    def add_image(self, source: Source) -> None:
        """Give a picture for the next question. It is encoded and prepared now, while the person still types."""
        (picture,) = load_all([source])
        with self.runtime.lock:
            self._check_idle()
            self._context.request_stop(False)
            start = time.perf_counter()
            self._take(picture)
            try:
                split = secrets.token_hex(8)
                prompt = self._render(self._content(split)).partition(split)[0]
                encoded = self._pictures[self._waiting[-1]]
                self._check_room(prompt, f"{picture.name} has {n_cells(encoded.chunks)} visual tokens and")
                self._encode(encoded)
                marks = list(self._marks.finditer(prompt))
                if marks:  # else this template puts pictures behind the text
                    self._advance(prompt[: marks[-1].end()], output=False)
                    if self.mode == "prepare":
                        self._context.prepare()
            except StoppedError:
                pass  # what is left is done with the question
            except BaseException:
                self._give_back(1)
                raise
            self._turn.ahead_sec += time.perf_counter() - start

    def ask(
        self,
        question: str,
        images: Source | Iterable[Source] = (),
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

        Pictures that come with the question are not prepared: their tokens are chosen as published, question first.
        max_tokens: None is as many as fit. temperature 0 always takes the likeliest token. grammar: GBNF, or
        json_schema: the answer is JSON of that schema. stop: the answer ends before any of these.
        """
        start = time.perf_counter()
        if not isinstance(question, str):
            raise HalfVError(f"A {type(question).__name__} is not a question: give text.")
        if max_tokens is not None and max_tokens < 1:
            raise HalfVError(parameter="max_tokens", value=max_tokens, rule="at least 1")
        seed = self.runtime.options.seed if seed is None else seed
        settings = AnswerOptions(temperature, top_k, top_p, min_p, seed, grammar, json_schema)
        stops = [text for text in ((stop,) if isinstance(stop, str) else stop) if text]
        pictures = load_all(images)
        with self.runtime.lock:
            self._check_idle()
            self._context.request_stop(False)
            before = self._n_given
            try:
                for picture in pictures:
                    self._take(picture)
                content = self._content(question)
                prompt = self._render(content)
                self._check_room(prompt, "This question")
                sampler = Sampler(settings, self.runtime.vocab)
            except BaseException:
                self._give_back(self._n_given - before)
                raise
            self._request = _Request(content, prompt, len(pictures), sampler, max_tokens, stops, start)
            return Answer(self, self._request)

    def answer(self, question: str, images: Source | Iterable[Source] = (), **options: Any) -> str:
        """Ask and wait for the whole answer. Options are those of ask()."""
        return "".join(self.ask(question, images, **options))

    def stop(self) -> None:
        """End the answer that is being made, from any thread. What was made stays in the conversation."""
        if self._context is not None:
            self._context.request_stop()

    def reset(self) -> None:
        """Forget the conversation and its pictures; the system message stays. An answer in the making ends."""
        with self.runtime.lock:
            self._check_open()
            self._context.clear()
            self._start()

    @property
    def token_maps(self) -> list[TokenMap]:
        """Which tokens of each picture were kept, in the order in which the pictures were given."""
        with self.runtime.lock:
            self._check_open()
            held = [item for item in self._context.items if isinstance(item, Chunk)]
            maps, at = [], 0
            for encoded in self._pictures.values():
                chosen = []
                for chunk in encoded.chunks:
                    kept = deep = None  # all of them
                    if at < len(held) and held[at] is chunk:
                        kept, deep = (self._context.image_tokens(at, stage) for stage in (2, 3))
                        at += 1
                    chosen.append((kept, deep))
                maps.append(self.encoder.token_map(encoded, chosen))
            return maps

    @property
    def n_ctx(self) -> int:
        """Tokens that a conversation may have,"""
        self._check_open()
        return self._context.n_ctx

    @property
    def n_used(self) -> int:
        """and that this one has by now, pictures included."""
        self._check_open()
        return self._context.n_cells

    def close(self) -> None:
        """End the conversation; its KV cache goes to the model's next chat."""
        with self.runtime.lock:
            if self._context is not None:
                context, self._context, self._request = self._context, None, None
                self.runtime.take_back(context)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._context is None:
            raise HalfVError("This chat is closed: open another with model.chat().")

    def _check_idle(self) -> None:
        self._check_open()
        if self._request is not None:
            raise HalfVError("This chat is still answering: finish or close that answer first, or open another chat.")

    #
    # from a conversation to tokens
    #

    def _marker(self, picture: int) -> str:
        return f"<|picture-{self._nonce}-{picture}|>"

    def _content(self, question: str) -> str:
        return "".join(self._marker(picture) for picture in self._waiting) + question

    def _render(self, content: str) -> str:
        return self.runtime.template.render([*self.messages, {"role": "user", "content": content}])

    def _tokens(self, text: str, fresh: bool) -> list[Item]:
        """Text and pictures as items. `fresh`: the text begins the context, or follows a picture directly."""
        items: list[Item] = []
        for number, part in enumerate(self._marks.split(text)):
            if number % 2:
                items += self._pictures[int(part)].items
            elif part:
                items += self.runtime.tokenize(part) if fresh or number else self._continue(part)
        return items

    def _continue(self, text: str) -> list[int]:
        """Tokens of text that goes on where other text ended: without the space that SPM puts before a first word."""
        if llama_h.llama_vocab_type(self.runtime.vocab) == llama_h.LLAMA_VOCAB_TYPE_SPM:
            anchor, both = self.runtime.tokenize("\n"), self.runtime.tokenize("\n" + text)
            if both[: len(anchor)] == anchor:
                return both[len(anchor) :]
        return self.runtime.tokenize(text)

    def _plan(self, prompt: str) -> tuple[int, list[Item]]:
        """How many of the context's items stay, and what has to be evaluated after them.

        What was sampled is often not what its text is cut into, so only text behind the last checkpoint is tokenized.
        """
        held = self._context.items
        last = next(point for point in reversed(self._checkpoints) if prompt.startswith(point.text))
        fresh = not last.text or last.text.endswith(tuple(map(self._marker, self._pictures)))
        rest = [*last.tail, *self._tokens(prompt[len(last.text) :], fresh)]
        if not rest:  # all of it is there, but its last logits are gone
            return last.count - 1, held[last.count - 1 : last.count]
        same = min(common(held[last.count :], rest), len(rest) - 1)
        return last.count + same, rest[same:]

    def _check_room(self, prompt: str, what: str) -> None:
        same, new = self._plan(prompt)
        self._context.check_room([*self._context.items[:same], *new], what)

    def _take(self, picture: Picture) -> None:
        encoded = self.encoder.tokens(picture)
        self._pictures[self._n_given] = encoded
        self._waiting.append(self._n_given)
        self._n_given += 1

    def _give_back(self, count: int) -> None:
        """The last pictures were not given after all."""
        for _ in range(count):
            del self._pictures[self._waiting.pop()]

    def _encode(self, encoded: Encoded) -> None:
        seconds = self.encoder.encode(encoded)
        if seconds is not None:
            self._turn.encode_sec += seconds
            self._turn.n_encoded += 1

    def _advance(self, prompt: str, output: bool) -> None:
        """Make the context hold exactly this prompt."""
        same, new = self._plan(prompt)
        context = self._context
        kept = context.items[:same]
        context.truncate(same)
        self._checkpoints = [point for point in self._checkpoints if point.count <= len(context.items)]
        context.evaluate([*kept[len(context.items) :], *new], output)
        self._checkpoints.append(_Checkpoint(prompt, len(context.items)))

    #
    # answering
    #

    def _generate(self, request: _Request) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while self._step(request, decoder):
                if piece := request.raw[len(request.text) : _certain(request.raw, request.stops)]:
                    request.text += piece
                    yield piece
            if piece := request.raw[len(request.text) :]:
                request.text = request.raw
                yield piece
        finally:
            self._leave(request)

    def _step(self, request: _Request, decoder: codecs.IncrementalDecoder) -> bool:
        """One token; False when there are no more."""
        with self.runtime.lock:
            if self._request is not request:  # the chat was closed or reset
                return False
            context, start = self._context, time.perf_counter()
            try:
                if not request.first:
                    self._prefill(request.prompt)
                elif len(request.generated) == request.max_tokens or context.n_cells + 1 > context.n_ctx:
                    request.stopped = "length"
                else:
                    context.evaluate(request.generated[-1:], output=True)
            except StoppedError:
                return False
            token = None
            if request.stopped != "length":
                token = request.sampler.sample(context.pointer)
                if not request.first:
                    request.first = time.perf_counter()
                    request.counts = self._counts(request)
                else:
                    request.generate_sec += time.perf_counter() - start
                if token is None or self.runtime.is_end(token):
                    token, request.stopped = None, "end"
            if token is None:
                request.raw += decoder.decode(b"", final=True)
                return False
            request.generated.append(token)
            request.raw += decoder.decode(self.runtime.piece(token))
            cut = min((place for place in map(request.raw.find, request.stops) if place >= 0), default=-1)
            if cut >= 0:
                request.raw, request.stopped = request.raw[:cut], "stop"
            return cut < 0

    def _prefill(self, prompt: str) -> None:
        for picture in self._waiting:
            self._encode(self._pictures[picture])
        if self._asked:
            self._context.top_up()
        self._advance(prompt, output=True)
        self._asked = any(isinstance(item, Chunk) for item in self._context.items)

    def _counts(self, request: _Request) -> dict[str, Any]:
        context, turn = self._context, self._turn
        return {
            "ttft_sec": request.first - request.start,
            "encode_sec": turn.encode_sec,
            "prefill_sec": context.decode_sec - turn.decode_sec,
            "ahead_sec": turn.ahead_sec,
            "n_prompt": context.n_evaluated - turn.n_evaluated,
            "n_encoded": turn.n_encoded,
            **visual_counts(context.items),
            **pruning_between(turn.halfv, context.stats()),
        }

    def _leave(self, request: _Request) -> None:
        """Write down what was answered; a question without a single token was not asked."""
        with self.runtime.lock:
            request.sampler.close()
            if self._request is not request:
                return
            self._request = None
            if not request.first:
                self._give_back(request.n_pictures)
                return
            request.text = request.raw
            self.messages.append({"role": "user", "content": request.content})
            self.messages.append({"role": "assistant", "content": request.raw})
            self._waiting = []
            # a text cut at a stop string or within a character is not the text of these tokens
            if request.stopped != "stop" and not request.raw.endswith(HALF):
                tail = () if request.stopped == "end" else tuple(request.generated[-1:])  # sampled, not evaluated
                point = _Checkpoint(request.prompt + request.raw, len(self._context.items), tail)
                self._checkpoints.append(point)
            later = len(request.generated) - 1
            self.stats = Stats(
                **request.counts,
                n_generated=len(request.generated),
                tokens_per_sec=later / request.generate_sec if later > 0 and request.generate_sec else 0.0,
                stopped=request.stopped,
            )
            self._turn = self._new_turn()


def _certain(text: str, stops: list[str]) -> int:
    """How much of a text is not perhaps the beginning of a stop string."""
    held = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return len(text) - held
