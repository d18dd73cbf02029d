"""A conversation about pictures, as its users call it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from halfv_edge.engine.answer import Answer
from halfv_edge.engine.async_answer import AsyncAnswer, in_thread
from halfv_edge.engine.context import Context, StoppedError, n_cells
from halfv_edge.engine.conversation import Conversation
from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.generation import Generation
from halfv_edge.engine.images import Picture, Source, load_all
from halfv_edge.engine.messages import Content, Message, Said, read_content
from halfv_edge.engine.options import AnswerFields, AnswerOptions
from halfv_edge.engine.runtime import Runtime
from halfv_edge.engine.sampling import Sampler
from halfv_edge.engine.stats import Stats
from halfv_edge.engine.tokens import TokenMap
from halfv_edge.errors import HalfVError

if TYPE_CHECKING:
    from typing_extensions import Unpack

Mode = Literal["prepare", "exact"]


class Chat:
    """A conversation about pictures. Its KV cache stays, so that a later turn pays only for what is new.

    Opened by `Model.chat`. It answers one question at a time; any thread may use it, and `stop()` at any time.
    """

    def __init__(self, runtime: Runtime, context: Context, mode: Mode):
        self.runtime = runtime
        self.mode = mode
        self._system: list[Said] = []
        self._conversation = Conversation(runtime, context, drafts=True)
        self._is_open = True
        runtime.chats.add(self)

    def _begin(self, history: Sequence[Said]) -> Chat:
        """Go on after these messages. The model's lock must not be held, as pictures are looked at."""
        self._system = [message for message in history[:1] if message.role == "system"]
        with self._idle() as conversation:
            conversation.history(history)
        return self

    def add_image(self, image: Source) -> None:
        """Give a picture for the next question. It is encoded and prepared now, while the person still types.

        Args:
            image: A path, a file: or data: URL, a file's bytes, a PIL image or an array of height x width x RGB.

        Raises:
            HalfVError: It cannot be read, or does not fit; the chat is as before.

        Example:
            chat.add_image("cat.jpg")
            print(chat.answer("What is this?"))
        """
        (picture,) = load_all([image])
        with self._idle() as conversation:
            start, before = time.perf_counter(), len(conversation.waiting)
            try:
                conversation.take(picture)
                split = secrets.token_hex(8)
                prompt = conversation.render(conversation.waiting_marks() + split).partition(split)[0]
                encoded = conversation.pictures[conversation.waiting[-1]]
                conversation.check_room(prompt, f"{picture.name} has {n_cells(encoded.chunks)} visual tokens and")
                conversation.encode()
                marks = list(conversation.marks.finditer(prompt))
                if marks:  # else this template puts pictures behind the text
                    with self.runtime.lock:
                        conversation.advance(prompt[: marks[-1].end()], output=False)
                        if self.mode == "prepare":
                            conversation.context.prepare()
            except StoppedError:
                pass  # what is left is done with the question
            except BaseException:
                conversation.give_back(before)
                raise
            conversation.turn.ahead_sec += time.perf_counter() - start

    def ask(
        self,
        question: Content,
        images: Source | Iterable[Source] = (),
        *,
        options: AnswerOptions | None = None,
        **fields: Unpack[AnswerFields],
    ) -> Answer:
        """Ask; iterate over what comes back for the text as it is made.

        Args:
            question: Text, or a list of parts in OpenAI's form, which may hold pictures between the text.
            images: Pictures, one or several, that stand before the question. These are not prepared: their tokens are
                chosen as published, with the question.
            options: How to answer; the same settings may be given by name instead, and go before these.

        Returns:
            The answer, of which nothing is computed yet.

        Raises:
            HalfVError: It cannot be asked; the chat is as before.

        Example:
            for piece in chat.ask("What is this?", "cat.jpg", max_tokens=200):
                print(piece, end="", flush=True)
        """
        start = time.perf_counter()
        wanted = dataclasses.replace(options or AnswerOptions(), **fields)
        return self._ask([*load_all(images), *read_content(question, "question")], wanted, start)

    def _ask(self, parts: Sequence[str | Picture], options: AnswerOptions, start: float | None = None) -> Answer:
        start = time.perf_counter() if start is None else start
        options = self.runtime.seeded(options)
        with self._idle() as conversation:
            before = len(conversation.waiting)
            try:
                content = conversation.waiting_marks() + conversation.marked(parts)
                prompt = conversation.render(content)
                conversation.check_room(prompt, "This question")
                sampler = Sampler(options, self.runtime.vocab)
            except BaseException:
                conversation.give_back(before)
                raise
            generation = Generation(conversation, content, prompt, before, options, sampler, start)
            conversation.answering = generation
            return Answer(generation, self)

    def answer(
        self,
        question: Content,
        images: Source | Iterable[Source] = (),
        *,
        options: AnswerOptions | None = None,
        **fields: Unpack[AnswerFields],
    ) -> str:
        """Ask and wait for the whole answer.

        Args:
            question: As for `ask`.
            images: As for `ask`.
            options: As for `ask`.

        Returns:
            The answer's text.

        Example:
            print(chat.answer("What is this?", "cat.jpg", max_tokens=200))
        """
        return self.ask(question, images, options=options, **fields).read()

    async def aadd_image(self, image: Source) -> None:
        """As `add_image`, in an event loop; cancelled, the picture is prepared with the question instead."""
        await in_thread(lambda: self.add_image(image), self.stop)

    async def aask(
        self,
        question: Content,
        images: Source | Iterable[Source] = (),
        *,
        options: AnswerOptions | None = None,
        **fields: Unpack[AnswerFields],
    ) -> AsyncAnswer:
        """As `ask`, in an event loop.

        Returns:
            The answer, for `async for`. Cancelling whoever iterates ends it; the chat can go on.

        Example:
            async for piece in await chat.aask("What is this?", "cat.jpg"):
                print(piece, end="", flush=True)
        """
        ask = functools.partial(self.ask, question, images, options=options, **fields)
        return AsyncAnswer(await in_thread(ask, self.stop, Answer.close))

    async def aanswer(
        self,
        question: Content,
        images: Source | Iterable[Source] = (),
        *,
        options: AnswerOptions | None = None,
        **fields: Unpack[AnswerFields],
    ) -> str:
        """As `answer`, in an event loop; cancelled, the answer ends, and the chat can go on."""
        return await (await self.aask(question, images, options=options, **fields)).read()

    def stop(self) -> None:
        """End the answer or the preparation that is under way; from any thread, at once."""
        if self._is_open:  # else its context may be another chat's by now
            self._conversation.context.request_stop()

    def reset(self) -> None:
        """Forget the conversation and its pictures; the system message stays. An answer in the making ends."""
        with self._conversation.lock:
            self._check_open()
            with self.runtime.lock:
                self._conversation.context.clear()
            self._conversation.start()
            self._conversation.history(self._system)

    @property
    def messages(self) -> list[Message]:
        """What was said, in OpenAI's form; `model.chat(messages=...)` goes on from it, after json.dumps and loads too.

        A picture that was given by its path comes back as that path, any other as a data: URL.
        """
        return [said.message() for said in self._conversation.messages()]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures of the conversation, in the order in which they were given: that of `token_maps`."""
        return [encoded.picture for encoded in self._conversation.pictures.values()]

    @property
    def stats(self) -> Stats:
        """What the last answer took."""
        return self._conversation.stats

    @property
    def token_maps(self) -> list[TokenMap]:
        """Which tokens of each picture were kept, in the order in which the pictures were given."""
        conversation = self._conversation
        with conversation.lock:
            self._check_open()
            held = [item for item in conversation.context.items if isinstance(item, Chunk)]
            maps, at = [], 0
            for encoded in conversation.pictures.values():
                chosen: list[tuple[list[int] | None, list[int] | None]] = []
                for chunk in encoded.chunks:
                    if at < len(held) and held[at] is chunk:
                        image_tokens = conversation.context.image_tokens
                        chosen.append((image_tokens(at, 2), image_tokens(at, 3)))
                        at += 1
                    else:
                        chosen.append((None, None))  # all of them
                maps.append(conversation.encoder.token_map(encoded, chosen))
            return maps

    @property
    def n_ctx(self) -> int:
        """Tokens that the conversation may have, pictures included."""
        self._check_open()
        return self._conversation.context.n_ctx

    @property
    def n_used(self) -> int:
        """Tokens that the conversation has by now, pictures included."""
        self._check_open()
        return self._conversation.context.n_cells

    def close(self) -> None:
        """End the conversation; its KV cache goes to the model's next chat. Messages and stats can still be read."""
        if not self._is_open:
            return
        self.stop()
        with self._conversation.lock:
            if self._is_open:
                self._is_open = False
                self._conversation.answering = None
                if self._conversation.drafter:
                    with self.runtime.lock:
                        self._conversation.drafter.close()
                self.runtime.take_back(self._conversation.context)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_is_open"):  # else its making failed
            self.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise HalfVError("This chat is closed: open another with model.chat().")

    @contextlib.contextmanager
    def _idle(self) -> Iterator[Conversation]:
        """The conversation, while nobody else changes it or answers in it."""
        conversation = self._conversation
        with conversation.lock:
            self._check_open()
            if conversation.answering is not None and conversation.answering.is_abandoned:
                conversation.answering.end()
            if conversation.answering is not None:
                raise HalfVError(
                    "This chat is still answering: finish or close that answer first, or open another chat."
                )
            conversation.context.request_stop(False)
            yield conversation
