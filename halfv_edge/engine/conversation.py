"""What was said in a chat, and which of it its context holds: a prompt is evaluated with the least to compute."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from halfv_cpp import llama_h

from halfv_edge.engine.context import Context, Item, common
from halfv_edge.engine.encoder import Chunk, Encoded, Frames
from halfv_edge.engine.images import Picture
from halfv_edge.engine.messages import Role, Said
from halfv_edge.engine.runtime import Runtime
from halfv_edge.engine.stats import Stats
from halfv_edge.engine.twig import Drafter


class Answering(Protocol):
    """An answer in the making, as the conversation knows it."""

    is_abandoned: bool

    def end(self) -> None:
        """It goes no further."""


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A beginning of the conversation whose tokens are the context's first ones, and those of the tail after them."""

    text: str
    count: int
    tail: tuple[int, ...] = ()  # belong there, and are not evaluated yet


@dataclass(slots=True)
class Turn:
    """What is counted from the end of one answer to the end of the next."""

    n_evaluated: int
    decode_sec: float
    halfv: dict[str, Any]
    encode_sec: float = 0.0
    ahead_sec: float = 0.0
    n_encoded: int = 0


class Conversation:
    """Its messages with a marker in place of each picture, and the context that follows them.

    Three locks, taken in this order: `lock` is of this conversation and held by whoever changes it; inside it either
    the encoder's, while a picture is encoded, or the model's, while a context computes; never both. So a chat whose
    picture is encoded keeps no other chat from answering.
    """

    def __init__(self, runtime: Runtime, context: Context, drafts: bool = False):
        """drafts: whether a twig may draft the answers, if the model has one."""
        self.runtime = runtime
        self.encoder = context.encoder
        self.context = context
        self.drafter = Drafter(runtime.draft, runtime.n_ctx) if runtime.draft and drafts else None
        self.lock = threading.RLock()
        self.answering: Answering | None = None
        self.stats = Stats()  # of the last answer
        self._nonce = secrets.token_hex(6)  # so that no text can pass for a picture
        self.marks = re.compile(rf"<\|picture-{self._nonce}-(\d+)\|>")
        self.start()

    def start(self) -> None:
        """Nothing was said; the context is empty."""
        self.answering = None
        self.rendered: list[dict[str, str]] = []  # what the chat template is given
        self.pictures: dict[int, Encoded] = {}
        self._n_given = 0  # a number is not used twice, so that a marker always means the same picture
        self.waiting: list[int] = []  # pictures of the next question
        self._frames: Frames | None = None  # what these showed
        self.checkpoints = [_Checkpoint("", 0, tuple(self.runtime.bos))]
        self.is_settled = False  # a question has chosen among the tokens of pictures
        self.turn = self.new_turn()

    def new_turn(self) -> Turn:
        return Turn(self.context.n_evaluated, self.context.decode_sec, self.context.stats())

    def messages(self) -> list[Said]:
        """All of them, with their pictures."""
        return [Said(self._role(message), self._parts(message["content"])) for message in self.rendered]

    @staticmethod
    def _role(message: dict[str, str]) -> Role:
        return message["role"]  # type: ignore[return-value]  # say() was given it

    def _parts(self, content: str) -> list[str | Picture]:
        parts: list[str | Picture] = []
        for number, part in enumerate(self.marks.split(content)):
            if number % 2:
                parts.append(self.pictures[int(part)].picture)
            elif part:
                parts.append(part)
        return parts

    #
    # saying something
    #

    def say(self, *said: tuple[Role, str]) -> None:
        """Messages with markers, all at once."""
        self.rendered = [*self.rendered, *({"role": role, "content": content} for role, content in said)]

    def history(self, messages: Iterable[Said]) -> None:
        """What was said before; its pictures are encoded with the next question."""
        for message in messages:
            self.waiting = []
            self.say((message.role, self.marked(message.parts)))
        self.waiting = []

    def marked(self, parts: Sequence[str | Picture]) -> str:
        """Texts and pictures as one text; the pictures wait for the question from now on."""
        return "".join(part if isinstance(part, str) else self.take(part) for part in parts)

    def take(self, picture: Picture) -> str:
        """A picture that waits for the question; its marker."""
        if not self.waiting:
            self._frames = self.encoder.frames()
        self.pictures[self._n_given] = self.encoder.tokens(picture, self._frames)
        self.waiting.append(self._n_given)
        self._n_given += 1
        return self._marker(self._n_given - 1)

    def give_back(self, n_waiting: int) -> None:
        """All but the first of the pictures that wait were not given after all."""
        while len(self.waiting) > n_waiting:
            del self.pictures[self.waiting.pop()]
        self._frames = self.encoder.frames(self.pictures[number].picture for number in self.waiting)

    def waiting_marks(self) -> str:
        """The pictures that wait for the question, as text."""
        return "".join(map(self._marker, self.waiting))

    def _marker(self, picture: int) -> str:
        return f"<|picture-{self._nonce}-{picture}|>"

    #
    # from messages to tokens
    #

    def render(self, content: str) -> str:
        """The prompt of a question, after all that was said."""
        return self.runtime.template.render([*self.rendered, {"role": "user", "content": content}])

    def _tokens(self, text: str, fresh: bool) -> list[Item]:
        """Text and pictures as items. `fresh`: the text begins the context, or follows a picture directly."""
        items: list[Item] = []
        for number, part in enumerate(self.marks.split(text)):
            if number % 2:
                items += self.pictures[int(part)].items
            elif part:
                items += self.runtime.tokenize(part) if fresh or number else self.continued(part)
        return items

    def continued(self, text: str) -> list[int]:
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
        held = self.context.items
        last = next(point for point in reversed(self.checkpoints) if prompt.startswith(point.text))
        fresh = not last.text or last.text.endswith(tuple(map(self._marker, self.pictures)))
        rest = [*last.tail, *self._tokens(prompt[len(last.text) :], fresh)]
        if not rest:  # all of it is there, but its last logits are gone
            return last.count - 1, held[last.count - 1 : last.count]
        same = min(common(held[last.count :], rest), len(rest) - 1)
        return last.count + same, rest[same:]

    def check_room(self, prompt: str, what: str) -> None:
        """Whether the context has room for this prompt and an answer; `what` needs it."""
        same, new = self._plan(prompt)
        self.context.check_room([*self.context.items[:same], *new], what)

    #
    # computing
    #

    def encode(self) -> None:
        """Encode what no chat of the model has seen; the model's lock must not be held."""
        for encoded in self.pictures.values():
            seconds = self.encoder.encode(encoded)
            if seconds is not None:
                self.turn.encode_sec += seconds
                self.turn.n_encoded += 1

    def prefill(self, prompt: str) -> None:
        """Evaluate a question's prompt, so that its last token gives logits."""
        if self.is_settled:
            self.context.top_up()
        self.advance(prompt, output=True)
        self.is_settled = any(isinstance(item, Chunk) for item in self.context.items)

    def advance(self, prompt: str, output: bool) -> None:
        """Make the context hold exactly this prompt."""
        same, new = self._plan(prompt)
        kept = self.context.items[:same]
        self.context.truncate(same)
        held = len(self.context.items)
        self.checkpoints = [point for point in self.checkpoints if point.count <= held]
        self.context.evaluate([*kept[held:], *new], output)
        self.checkpoints.append(_Checkpoint(prompt, len(self.context.items)))

    def answered(self, prompt: str, answer: str, unevaluated: Sequence[int]) -> None:
        """The context holds the prompt and this answer, but for its last tokens."""
        self.checkpoints.append(_Checkpoint(prompt + answer, len(self.context.items), tuple(unevaluated)))
